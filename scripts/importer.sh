# SPDX-License-Identifier: GPL-3.0-or-later
# Import the artifact $1 as Galaxy does. What Galaxy only warns of is a failure here.
set -eu
artifact=$(realpath "$1")
GALAXY_IMPORTER_CONFIG=$(realpath scripts/galaxy-importer.cfg)
export GALAXY_IMPORTER_CONFIG
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # where it leaves its result
python -m galaxy_importer.main "$artifact" >log 2>&1 || failed=yes
cat log
[ -z "${failed:-}" ] && ! grep -q -E '^(WARNING|ERROR|CRITICAL): ' log
