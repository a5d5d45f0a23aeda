# SPDX-License-Identifier: GPL-3.0-or-later
# Print how to call the container engine of this machine, one word a line; or say in one line why none can be used.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
settings=CONTAINERS_CONF=$here/containers.conf

# Without an image at hand, the machine's own root serves, under a layer that takes what is written.
podman_runs() {
    command -v podman >/dev/null && "$@" podman run --rm --network=none --rootfs /:O true >/dev/null 2>&1
}

# Without root it has no addresses that can be reached, and Podman's stand-in for it is Podman.
docker_runs() {
    options=$(docker info --format '{{.SecurityOptions}}' 2>/dev/null) || return 1
    case "$options $(docker --version)" in *rootless* | *[Pp]odman*) return 1 ;; esac
}

set --
[ "$(id -u)" = 0 ] || set -- sudo --non-interactive
if ! grep -q ' cgroup2 ' /proc/mounts; then
    echo "Containers that run systemd need cgroups of version 2, and none are mounted here." >&2
    exit 1
elif podman_runs "$@" env; then
    set -- "$@" podman
elif podman_runs "$@" env "$settings"; then
    set -- "$@" env "$settings" podman
elif docker_runs; then
    set -- docker
else
    [ $# = 0 ] || set -- " by '$*'"
    echo "No container engine works here, neither Podman as root$* nor Docker's service; 'make molecule' installs Podman on Debian." >&2
    exit 1
fi
printf '%s\n' "$@"
