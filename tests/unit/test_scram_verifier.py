# SPDX-License-Identifier: GPL-3.0-or-later
"""The verifier that is sent in a password's place."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.filter.scram_verifier import scram_verifier

# What PostgreSQL 15.18 itself stored of these passwords.
PENCIL = (
    "SCRAM-SHA-256$4096:pnE7DL7olrtozzFCpwC0jA==$"
    "rmshqbfpfAOmh4dlG3Eflny94OGmr3wXC7j0eMjH3fE=:"
    "wYREBQQJEoinb71BulqM7BTJtz5hyfx3etr8z35eAq4="
)
AWKWARD = (
    "SCRAM-SHA-256$4096:1PnQL107wIY7VcldGW0DNw==$"
    "a1mhQVzIdRD+3uhy8szuQq24NpLViPQdkgbMzcsnaXQ=:"
    "s8A8fAU0cdx+A9FnvRk4JBkBcO8Su6Bg/VzoQYCWU/M="
)


def test_a_new_verifier_has_a_salt_of_its_own():
    assert scram_verifier("pencil").startswith("SCRAM-SHA-256$4096:")
    assert scram_verifier("pencil") != scram_verifier("pencil")


@pytest.mark.parametrize(("password", "stored"), [("pencil", PENCIL), ("P\u00f8\u00adet \u00a0\u00df", AWKWARD)])
def test_the_servers_own_verifier_of_the_same_password_is_kept(password, stored):
    assert scram_verifier(password, stored) == stored


@pytest.mark.parametrize("stored", [None, "", "md5abc", AWKWARD])
def test_another_one_is_replaced(stored):
    assert scram_verifier("pencil", stored) != stored


@pytest.mark.parametrize("password", ["", None])
def test_no_password_is_refused(password):
    with pytest.raises(AnsibleFilterError, match="password is empty"):
        scram_verifier(password)
