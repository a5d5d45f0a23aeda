# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations


class ModuleDocFragment:
    """The option of SOURCE_OPTIONS in module_utils/postgres/endpoint.py."""

    DOCUMENTATION = r"""
options:
  source:
    description:
      - The database that the data comes from, as it is reached from where the module runs.
    type: dict
    suboptions:
      host:
        description:
          - Name or address of the source's server.
        type: str
        required: true
      port:
        description:
          - Port of the source's server.
        type: int
        default: 5432
      db:
        description:
          - Database on the source.
        type: str
        required: true
      user:
        description:
          - Role to log in as at the source.
        type: str
        required: true
      password:
        description:
          - Password of O(source.user), any characters.
        type: str
      passfile:
        description:
          - Pass file that holds the password, see U(https://www.postgresql.org/docs/current/libpq-pgpass.html).
            Libpq ignores it when others than its owner may read it, and when O(source.password) is given.
        type: path
      ssl_mode:
        description:
          - Whether the connection to the source uses TLS and what it checks. Without it libpq decides, which means
            V(prefer).
        type: str
        choices: [allow, disable, prefer, require, verify-ca, verify-full]
      ca_cert:
        description:
          - File with the certificates of the authorities that may have signed the source's certificate.
        type: path
        aliases: [ssl_rootcert]
      ssl_cert:
        description:
          - File with the client's certificate.
        type: path
      ssl_key:
        description:
          - File with the key of O(source.ssl_cert).
        type: path
      connect_params:
        description:
          - More libpq keywords, such as C(application_name) or C(keepalives_idle). They win over the options above.
          - Without others, a connection is given up when the source has been silent for 60 seconds (C(keepalives_idle=30),
            C(keepalives_interval=10), C(keepalives_count=3)). By most systems' own settings a first copy would wait two hours
            for a source whose network was cut.
          - C(password) and C(sslpassword) are refused, because Ansible would print them.
        type: dict
        default: {}
"""
