# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-test takes for get-pip.py: pip from the interpreter itself, then the version asked for from the package index."""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys

environment = os.environ.copy()  # ensurepip turns pip's configuration off, in this process too
ensurepip.bootstrap()
packages = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *packages], env=environment))
