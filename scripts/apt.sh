# SPDX-License-Identifier: GPL-3.0-or-later
# Install Debian's packages "$@", as root or by sudo.
set -eu

sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "Root or sudo is needed to install $*." >&2; exit 1; }
    sudo=sudo
fi
echo "Installing $* with apt-get"
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
