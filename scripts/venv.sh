# SPDX-License-Identifier: GPL-3.0-or-later
# Make a virtual environment in $1 with the requirements of file $2, and the collections beside it.
set -eu
venv=$1
requirements=$2

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.10 or later is needed, and none is on the PATH: install python3." >&2
    exit 1
}

# Debian keeps what makes virtual environments in a package of its own.
make_venv() {
    "$1" -m venv "$venv" >/dev/null 2>&1 && return
    rm -rf "$venv"
    if command -v apt-get >/dev/null; then
        sh scripts/apt.sh "python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    fi
    "$1" -m venv "$venv"
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "Making a virtual environment with $python"
    make_venv "$python"
fi
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$requirements"

sh scripts/collections.sh "$venv/bin/python"
