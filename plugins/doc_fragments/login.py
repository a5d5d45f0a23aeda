# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations


class ModuleDocFragment:
    """The options of LOGIN_OPTIONS in module_utils/postgres/endpoint.py."""

    DOCUMENTATION = r"""
options:
  login_host:
    description:
      - Name or address of the server. A value that begins with a slash is the directory of its Unix socket.
      - When neither it nor O(login_unix_socket) is given, libpq decides, which means C(PGHOST), then the local socket.
    type: str
  login_port:
    description:
      - Port of the server, also part of its socket's file name.
    type: int
    default: 5432
  login_user:
    description:
      - Role to log in as.
    type: str
    default: postgres
  login_password:
    description:
      - Password of O(login_user). Without it libpq looks for one in C(PGPASSWORD) and in the pass file.
    type: str
  login_unix_socket:
    description:
      - Directory of the server's Unix socket. It counts only when O(login_host) is not given.
    type: path
  login_db:
    description:
      - Database to log in to. What the module manages lies in it.
    type: str
    required: true
  ssl_mode:
    description:
      - Whether the connection uses TLS and what it checks, see
        U(https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION).
      - Without it libpq decides, which means C(PGSSLMODE), then V(prefer).
      - Only V(verify-full) proves that the server is the one that was asked for.
    type: str
    choices: [allow, disable, prefer, require, verify-ca, verify-full]
  ca_cert:
    description:
      - File with the certificates of the authorities that may have signed the server's certificate.
    type: path
    aliases: [ssl_rootcert]
  ssl_cert:
    description:
      - File with the client's certificate.
    type: path
  ssl_key:
    description:
      - File with the key of O(ssl_cert). Libpq refuses one that others may read.
    type: path
  connect_params:
    description:
      - More keywords of U(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
        They win over the options above.
      - C(connect_timeout) is 10 seconds unless it is given here.
      - C(password) and C(sslpassword) are refused, because Ansible would print them.
    type: dict
    default: {}
requirements:
  - psycopg2 >= 2.8
notes:
  - Runs on, or next to, the server that its C(login_*) options name, which is PostgreSQL 13 or later.
  - Its sessions have C(lock_timeout) set to 3 seconds, so that nobody queues up behind it. When a lock can't be had by
    then, it fails and names the sessions that may hold it.
"""
