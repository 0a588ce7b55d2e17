"""Whose connection it is, and whose word is taken for it."""

import pytest

from api.server.connections import ConnectionTable, address_group, trusted_networks
from core.errors import SettingsError
from core.settings import Http


@pytest.mark.parametrize(
    ("peer", "group"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_is_counted_by_its_network(peer: str, group: str) -> None:
    """One of IPv4 by itself, one of IPv6 with all that its owner can make up."""
    assert address_group(peer) == group


def test_no_proxy_is_trusted_by_default() -> None:
    """Not even one on this machine."""
    table = ConnectionTable(Http())
    assert not table.trusts("127.0.0.1")
    assert not table.trusts("10.0.0.1")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "10.0.0.1"),
        ([b""], "10.0.0.1"),
        ([b"203.0.113.7"], "203.0.113.7"),
        ([b"9.9.9.9, 203.0.113.7"], "203.0.113.7"),
        ([b"9.9.9.9, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ([b"9.9.9.9", b"203.0.113.7"], "203.0.113.7"),
        ([b"203.0.113.7:4711"], "203.0.113.7"),
        ([b"[2001:db8::1]:4711, 2001:db9::1"], "2001:db8::1"),
        ([b"2001:db8::1"], "2001:db8::1"),
        ([b"203.0.113.7, unknown"], "10.0.0.1"),
        ([b"203.0.113.7, <script>"], "10.0.0.1"),
        ([b"\xff\xfe"], "10.0.0.1"),
        ([b"10.0.0.3, 10.0.0.2"], "10.0.0.1"),
    ],
)
def test_a_client_is_the_last_that_no_trusted_proxy_has(
    forwarded: list[bytes], client: str
) -> None:
    """What stands before it is its own word, and what cannot be read is the proxy's request."""
    table = ConnectionTable(Http(trusted_proxies=("10.0.0.0/8", "2001:db9::/32")))
    assert table.trusts("10.0.0.1")
    assert table.trusts("::ffff:10.0.0.1")
    assert not table.trusts("203.0.113.7")
    assert table.client_of("10.0.0.1", forwarded) == client


@pytest.mark.parametrize("text", ["10.0.0.0/99", "proxy.test", "10.0.0.1/8"])
def test_a_proxy_that_is_no_network_is_refused(text: str) -> None:
    """At the start, naming the variable."""
    with pytest.raises(SettingsError, match="K9_TRUSTED_PROXIES"):
        trusted_networks(Http(trusted_proxies=(text,)))
