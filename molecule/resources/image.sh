# SPDX-License-Identifier: GPL-3.0-or-later
# Build the image of Debian suite $1, on Debian's own image where a registry answers, else on one that debootstrap makes.
# SUITE-SCENARIO is the layer above it that a scenario has of its own.
set -eu
suite=${1%%-*}
here=$(cd "$(dirname "$0")" && pwd)
# The engine's words come one a line.
IFS='
'
engine=$(sh "$here/engine.sh")

bootstrap() {
    command -v debootstrap >/dev/null || {
        echo "No registry gives debian:$suite, and debootstrap isn't installed; 'make containers' installs it." >&2
        exit 1
    }
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    # Where /tmp is a file system in memory, it takes no device files.
    root=$(mktemp -d -p /var/tmp)
    trap '$sudo rm -rf "$root"' EXIT
    # A debootstrap that is older than the suite has no script for it; every suite of today bootstraps like sid.
    script=$([ -e "/usr/share/debootstrap/scripts/$suite" ] || echo sid)
    $sudo debootstrap --variant=minbase "$suite" "$root/debian" "" "$script" >"$root/log" || { tail "$root/log" >&2; exit 1; }
    $sudo tar -C "$root/debian" -c -f "$root/debian.tar" .
    $engine import "$root/debian.tar" "$1" >/dev/null
}

base=docker.io/library/debian:$suite
own=localhost/debian:$suite
if $engine image inspect "$own" >/dev/null 2>&1; then
    base=$own
elif ! $engine image inspect "$base" >/dev/null 2>&1 && ! $engine pull --quiet "$base" >/dev/null 2>&1; then
    echo "Bootstrapping Debian $suite"
    base=$own
    bootstrap "$base"
fi
# What is unchanged comes from the cache of layers.
$engine build --quiet --tag "localhost/pgml-molecule:$suite" --build-arg "BASE=$base" --file "$here/Containerfile" "$here"
if [ "$1" != "$suite" ]; then
    scenario=$here/../${1#"$suite"-}
    $engine build --quiet --tag "localhost/pgml-molecule:$1" --build-arg "BASE=localhost/pgml-molecule:$suite" \
        --file "$scenario/Containerfile" "$scenario"
fi
