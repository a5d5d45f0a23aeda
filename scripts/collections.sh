# SPDX-License-Identifier: GPL-3.0-or-later
# Put this collection and those that it depends on where ansible.cfg looks; $1 is the Python to fetch with.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}

collections=.ansible/collections/ansible_collections
mkdir -p $collections/postgresml
ln -sfn ../../../.. $collections/postgresml/distributed
if [ ! -d $collections/community/postgresql ]; then
    echo "Fetching community.postgresql"
    "$python" scripts/fetch_collections.py .ansible/collections
fi
