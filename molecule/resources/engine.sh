# SPDX-License-Identifier: GPL-3.0-or-later
# Print how to call the container engine of this machine, one word a line; or say in one line why none can be used.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
sudo=$([ "$(id -u)" = 0 ] || echo sudo --non-interactive)

# Without an image at hand, the machine's own root serves, under a layer that takes what is written.
podman_runs() {
    command -v podman >/dev/null && $sudo "$@" podman run --rm --network=none --rootfs /:O true >/dev/null 2>&1
}

if ! grep -q ' cgroup2 ' /proc/mounts; then
    echo "Containers that run systemd need cgroups of version 2, and none are mounted here." >&2
    exit 1
elif podman_runs env; then
    set -- $sudo podman
elif podman_runs env "CONTAINERS_CONF=$here/containers.conf"; then
    set -- $sudo env "CONTAINERS_CONF=$here/containers.conf" podman
elif docker info >/dev/null 2>&1; then
    set -- docker
else
    echo "No container engine works here: neither Podman as root nor Docker. 'make containers' installs Podman where it can." >&2
    exit 1
fi
printf '%s\n' "$@"
