# SPDX-License-Identifier: GPL-3.0-or-later
# Make sure that PostgreSQL's server and client programs are on this machine; install them if none are.
set -eu

found() {
    for directory in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin "$(dirname "$(command -v initdb || echo /)")"; do
        if [ -x "$directory/initdb" ] && [ -x "$directory/pg_dump" ] && [ -x "$directory/psql" ]; then
            return 0
        fi
    done
    return 1
}

found && exit 0
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
if command -v apt-get >/dev/null; then
    sh "$(dirname "$0")/apt.sh" postgresql-common
    # Debian's package would start a server of its own, which nobody asked for.
    $sudo mkdir -p /etc/postgresql-common/createcluster.d
    echo "create_main_cluster = false" | $sudo tee /etc/postgresql-common/createcluster.d/pgml.conf >/dev/null
    sh "$(dirname "$0")/apt.sh" postgresql
    $sudo rm /etc/postgresql-common/createcluster.d/pgml.conf
elif command -v dnf >/dev/null; then
    echo "Installing PostgreSQL with dnf"
    $sudo dnf install -y -q postgresql-server postgresql
else
    echo "PostgreSQL's server and client programs are needed: install them so that initdb, pg_dump and psql are on the PATH." >&2
    exit 1
fi
found || { echo "PostgreSQL was installed, but initdb, pg_dump and psql are not where they were looked for." >&2; exit 1; }
