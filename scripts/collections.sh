# SPDX-License-Identifier: GPL-3.0-or-later
# Put this collection and those that it depends on where ansible.cfg looks; $1 is the Python to fetch with.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}

mkdir -p .ansible/collections/ansible_collections/postgresml
ln -sfn ../../../.. .ansible/collections/ansible_collections/postgresml/distributed
"$python" scripts/fetch_collections.py .ansible/collections
