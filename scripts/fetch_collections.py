# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the collections we depend on where ansible.cfg looks, from the ansible package on PyPI: no Galaxy needed."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "ansible==12.3.0"  # carries community.postgresql 4.2.0
WANTED = ("community/postgresql",)


def main() -> None:
    destination = pathlib.Path(sys.argv[1])
    fetched = destination / ".fetched"
    if fetched.exists() and fetched.read_text() == PACKAGE:
        return
    print("Fetching", ", ".join(name.replace("/", ".") for name in WANTED), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        # Any Python can unpack the wheel, whichever versions Ansible itself asks for.
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python"]
        if subprocess.run([*download, "-d", directory, PACKAGE]).returncode != 0:
            sys.exit(f"{PACKAGE}, which holds them, could not be fetched with {sys.executable} -m pip.")
        (wheel,) = pathlib.Path(directory).glob("ansible-*.whl")
        prefixes = tuple(f"ansible_collections/{name}/" for name in WANTED)
        with zipfile.ZipFile(wheel) as archive:
            for name in WANTED:
                shutil.rmtree(destination / "ansible_collections" / name, ignore_errors=True)
            archive.extractall(destination, [name for name in archive.namelist() if name.startswith(prefixes)])
    fetched.write_text(PACKAGE)


if __name__ == "__main__":
    main()
