# SPDX-License-Identifier: GPL-3.0-or-later
# Make sure that this machine can run containers with hosts in them; install what that takes if it is missing.
set -eu
engine=$(dirname "$0")/../molecule/resources/engine.sh

set --
command -v ssh-keygen >/dev/null || set -- "$@" openssh-client
command -v debootstrap >/dev/null || set -- "$@" debootstrap
if ! sh "$engine" >/dev/null 2>&1; then
    command -v podman >/dev/null || set -- "$@" podman netavark iptables
    command -v runc >/dev/null || set -- "$@" runc
fi
if grep -q ' cgroup2 ' /proc/mounts && [ $# -gt 0 ] && command -v apt-get >/dev/null; then
    sh "$(dirname "$0")/apt.sh" "$@"
fi
sh "$engine" >/dev/null
