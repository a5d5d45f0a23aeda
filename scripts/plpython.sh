# SPDX-License-Identifier: GPL-3.0-or-later
# Make sure that PL/Python and scikit-learn are on this machine, which the tests of models need; install them if they are missing.
set -eu

if ! command -v apt-get >/dev/null; then
    echo "The tests of models are skipped: only Debian's packages of PL/Python and scikit-learn are known to run them." >&2
    exit 1
fi
version_of() {
    dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'
}

servers=0
set --
[ -n "$(version_of python3-sklearn)" ] || set -- "$@" python3-sklearn
for directory in /usr/lib/postgresql/*/bin; do
    major=$(basename "$(dirname "$directory")")
    version=$(version_of "postgresql-$major")
    [ -n "$version" ] || continue
    servers=$((servers + 1))
    # The newest PL/Python would bring the newest server, and restart those that run.
    [ -n "$(version_of "postgresql-plpython3-$major")" ] || set -- "$@" "postgresql-plpython3-$major=$version"
done
if [ "$servers" = 0 ]; then
    echo "The tests of models are skipped: PostgreSQL is not installed from Debian's packages." >&2
    exit 1
fi
[ $# = 0 ] || sh "$(dirname "$0")/apt.sh" "$@"
