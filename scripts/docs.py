# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the HTML documentation into .cache/docs with antsibull-docs and Sphinx. It needs no network, and warnings are errors."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zlib

NAME = "postgresml.distributed"
SITE = pathlib.Path(".cache/docs")
HOME = pathlib.Path(".cache/home")
"""where antsibull-docs leaves its log"""
NEIGHBOUR = pathlib.Path(".ansible/collections/ansible_collections/community/postgresql/plugins/modules")
ANSIBLE = "https://docs.ansible.com/projects/ansible/latest/"

_CONFIGURATION = f"""
# The labels of Ansible's own documentation that ours refers to; fetching all of them would take a network.
intersphinx_mapping = {{"ansible": ("{ANSIBLE}", "../ansible.inv")}}
html_theme_options = {{"topbar_links": {{}}}}
"""

_PLACES = f"""
collection_url = {{
  {NAME} = "https://github.com/postgresml/distributed"
  * = "https://galaxy.ansible.com/ui/repo/published/{{namespace}}/{{name}}/"
}}
collection_install = {{
  {NAME} = "ansible-galaxy collection install git+https://github.com/postgresml/distributed.git"
  * = "ansible-galaxy collection install {{namespace}}.{{name}}"
}}
"""


def main() -> None:
    shutil.rmtree(SITE, ignore_errors=True)
    (SITE / "rst").mkdir(parents=True)
    HOME.mkdir(exist_ok=True)
    for directory in (SITE, SITE / "rst"):
        directory.chmod(0o700)  # antsibull-docs writes nowhere else
    rst = str(SITE / "rst")
    common = ["--use-current", "--squash-hierarchy", NAME, "--dest-dir"]
    titles = ["--project", NAME, "--title", NAME, "--copyright", f"{NAME} contributors"]
    _run("antsibull-docs", "sphinx-init", *titles, *common, str(SITE))
    with (SITE / "conf.py").open("a", encoding="utf-8") as conf:
        conf.write(_CONFIGURATION)
    (SITE / "antsibull-docs.cfg").write_text(_PLACES, encoding="utf-8")
    _write_inventory(SITE / "ansible.inv")
    _run(
        "antsibull-docs",
        "--config-file",
        str(SITE / "antsibull-docs.cfg"),
        "collection",
        "--fail-on-error",
        *common,
        rst,
    )
    _run("sphinx-build", "-q", "-W", "--keep-going", "-c", str(SITE), rst, str(SITE / "html"))
    print(f"The documentation is in {SITE / 'html' / 'index.html'}")


def _run(program: str, *arguments: str) -> None:
    """Run a program, which is heard of only when it fails."""
    environment = {**os.environ, "HOME": str(HOME.absolute())}
    result = subprocess.run(
        [program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        sys.exit(result.stdout)


def _write_inventory(path: pathlib.Path) -> None:
    """A Sphinx inventory, version 2, see https://www.sphinx-doc.org/en/master/usage/extensions/intersphinx.html."""
    places = {
        "action_plugins": "plugins/action.html",
        "ansible_configuration_settings": "reference_appendices/config.html",
        "common_return_values": "reference_appendices/common_return_values.html",
        "module_defaults": "playbook_guide/playbooks_module_defaults.html",
    }
    for module in NEIGHBOUR.glob("*.py"):
        label = f"ansible_collections.community.postgresql.{module.stem}_module"
        places[label] = f"collections/community/postgresql/{module.stem}_module.html"
    lines = [f"{label} std:label -1 {place}#{_anchor(label)} {label}\n" for label, place in sorted(places.items())]
    head = "# Sphinx inventory version 2\n# Project: Ansible\n# Version: latest\n"
    path.write_bytes((head + "# The remainder of this file is compressed using zlib.\n").encode())
    with path.open("ab") as inventory:
        inventory.write(zlib.compress("".join(lines).encode()))


def _anchor(label: str) -> str:
    return label.replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
