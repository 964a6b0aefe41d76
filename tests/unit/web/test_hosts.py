"""Names the operations listener answers to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.web.hosts import is_our_name

ALLOWED = frozenset({"metrics.example.com"})


@pytest.mark.parametrize(
    "host",
    [None, "", "localhost", "LOCALHOST:8081", "a.localhost", "127.0.0.1", "127.0.0.1:8081", "10.0.0.7:8081", "[::1]",
     "[::1]:8081", "[fd00::1]:8081", "tollgate", "tollgate:8081", "metrics.example.com", "Metrics.Example.com:8081",
     "metrics.example.com.", " localhost "],
)  # fmt: skip
def test_ours(host):
    assert is_our_name(host, ALLOWED)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8081", "example.com", "a.metrics.example.com", "metrics.example.com.evil",
     "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io", "1.2.3", "256.1.1.1", "[::1].evil.example",
     "[evil.example]", "[::1]:x", "localhost:evil.example", "evil.example:", "::1.evil.example",
     "evil.example localhost", "evil.example\tlocalhost"],
)  # fmt: skip
def test_not_ours(host):
    assert not is_our_name(host, ALLOWED)


@given(st.ip_addresses(), st.none() | st.integers(0, 65_535))
def test_every_address_is_ours(address, port):
    name = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address)
    assert is_our_name(name if port is None else f"{name}:{port}", ())


LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@given(st.lists(LABEL, min_size=2, max_size=5), st.none() | st.integers(0, 65_535))
def test_no_public_name_is(labels, port):
    name = ".".join([*labels, "example"])
    assert not is_our_name(name if port is None else f"{name}:{port}", ())
