# SPDX-License-Identifier: GPL-3.0-or-later
# Run ansible-test sanity on the artifact $2, with the newest or the oldest ($1) ansible-core that a Python here can run.
set -eu
umask 077
age=$1
artifact=$2

# The path of a Python of version $1. A version manager's own command may be there and not work.
find_python() {
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1" ".venv/bin/python$1"; do
        "$candidate" -c 'import ensurepip, sys; print(sys.executable)' 2>/dev/null && return
    done
    return 1
}

first=
core=
# Take ansible-core $1 if one of the Pythons after it is here.
consider() {
    [ "$age" = newest ] && [ -n "$core" ] && return
    release=$1
    shift
    for version in "$@"; do
        if found=$(find_python "$version"); then
            core=$release
            python=$found
            first=${first:-$core}
            return
        fi
    done
}

consider 2.21.5 3.14 3.13 3.12
consider 2.20.10 3.14 3.13 3.12
consider 2.19.14 3.13 3.12 3.11
consider 2.17.14 3.12 3.11 3.10 # the oldest that meta/runtime.yml admits
if [ -z "$core" ]; then
    echo "Python 3.10 to 3.14 with ensurepip is needed, and none was found." >&2
    exit 1
elif [ "$age" = oldest ] && [ "$core" = "$first" ]; then
    echo "Only ansible-core $core runs here."
    exit 77
fi

mkdir -p ".cache/sanity/$core"
cache=$(cd ".cache/sanity/$core" && pwd)
if [ ! -x "$cache/venv/bin/ansible-test" ]; then
    "$python" -m venv --clear "$cache/venv"
    "$cache/venv/bin/python" -m pip install -q --disable-pip-version-check "ansible-core==$core"
fi

# ansible-test keeps its own virtual environments in HOME, and takes no PIP_* from the environment.
pip_settings() {
    echo "[global]"
    "$cache/venv/bin/python" -m pip config list |
        sed -n "s/^\(:env:\|global\)\.\([a-z-]*\)='\(.*\)'\$/\2 = \3/p" | sed 's/\\n/ /g' | awk '!seen[$1]++'
}
mkdir -p "$cache/home/.config/pip" "$cache/home/.ansible/test/cache"
pip_settings >"$cache/home/.config/pip/pip.conf"
sed -n "s/^ *pip='\(.*\)',\$/\1/p" "$cache"/venv/lib/python*/site-packages/ansible_test/_internal/python_requirements.py |
    while read -r pip; do
        cp scripts/get_pip.py "$cache/home/.ansible/test/cache/get_pip_$(echo "$pip" | tr . _).py"
    done

# Modules are tried on the oldest Python that is here, too.
set --
for version in $("$cache/venv/bin/python" -c \
    'from ansible_test._util.target.common import constants; print(*constants.REMOTE_ONLY_PYTHON_VERSIONS)'); do
    if found=$(find_python "$version"); then
        set -- --target-python "$version"
        PATH=$(dirname "$found"):$PATH
        break
    fi
done

# Within a working tree of git, ansible-test would take only what git knows.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
collection=$work/ansible_collections/postgresml/distributed
mkdir -p "$collection"
tar -xzf "$artifact" -C "$collection"
cd "$collection"
echo "ansible-core $core"
export HOME="$cache/home" PATH="$cache/venv/bin:$PATH"
ansible-test sanity --color no "$@" --target-python default
