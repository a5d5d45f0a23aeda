# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the collections we depend on where ansible.cfg looks, from the ansible package on PyPI: no Galaxy needed."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "ansible==12.3.0"  # carries community.postgresql 4.2.0
WANTED = ("community/postgresql",)


def main() -> None:
    destination = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        # Any Python can unpack the wheel, whichever versions Ansible itself asks for.
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python"]
        subprocess.run([*download, "-d", directory, PACKAGE], check=True)
        (wheel,) = pathlib.Path(directory).glob("ansible-*.whl")
        prefixes = tuple(f"ansible_collections/{name}/" for name in WANTED)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(destination, [name for name in archive.namelist() if name.startswith(prefixes)])


if __name__ == "__main__":
    main()
