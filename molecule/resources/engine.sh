# SPDX-License-Identifier: GPL-3.0-or-later
# Print how to call the container engine of this machine, one word a line; or say in one line why none can be used.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
settings=CONTAINERS_CONF=$here/containers.conf

# Without an image at hand, the machine's own root serves, under a layer that takes what is written.
podman_runs() {
    command -v podman >/dev/null && "$@" podman run --rm --network=none --rootfs /:O true >/dev/null 2>&1
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
elif docker info >/dev/null 2>&1; then
    set -- docker
else
    echo "No container engine works here, neither Podman as root nor Docker; 'make containers' installs Podman where it can." >&2
    exit 1
fi
printf '%s\n' "$@"
