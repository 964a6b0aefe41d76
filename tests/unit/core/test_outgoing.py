"""Which proxy a call goes through."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.outgoing import NO_PROXIES, Proxies, why_no_proxy

OPENAI = "https://api.openai.com/v1"
PROXY = "http://user:secret@proxy.internal:3128"


def direct(url: str, no_proxy: str) -> bool:
    return Proxies(PROXY, PROXY, no_proxy).proxy_of(url) is None


def test_each_scheme_has_its_own():
    proxies = Proxies("http://a:1", "http://b:2")
    assert proxies.proxy_of(OPENAI) == "http://a:1"
    assert proxies.proxy_of("http://api.internal/v1") == "http://b:2"
    assert Proxies(https="http://a:1").proxy_of("http://api.internal/v1") is None
    assert Proxies(http="http://b:2").proxy_of(OPENAI) is None
    assert NO_PROXIES.proxy_of(OPENAI) is None


def test_a_proxy_may_be_written_without_a_scheme():
    assert Proxies("proxy.internal:3128").proxy_of(OPENAI) == "http://proxy.internal:3128"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "localhost."]
)
def test_what_is_on_this_machine_is_never_behind_a_proxy(host):
    assert direct(f"http://{host}:8000/v1", "")


@pytest.mark.parametrize(
    ("no_proxy", "url", "expected"),
    [
        ("", OPENAI, False),
        ("*", OPENAI, True),
        ("other.com", OPENAI, False),
        ("api.openai.com", OPENAI, True),
        ("API.OpenAI.com", OPENAI, True),
        ("openai.com", OPENAI, True),
        (".openai.com", OPENAI, True),
        ("*.openai.com", OPENAI, True),
        ("ai.com", OPENAI, False),
        ("a.com, openai.com", OPENAI, True),
        ("a.com openai.com", OPENAI, True),
        (",,openai.com,", OPENAI, True),
        (".", OPENAI, False),
        ("openai.com:443", OPENAI, True),
        ("openai.com:8443", OPENAI, False),
        ("openai.com:8443", "https://api.openai.com:8443/v1", True),
        ("openai.com.evil", OPENAI, False),
        ("api.openai.com.", OPENAI, False),
        ("api.openai.com", "https://api.openai.com./v1", True),
        ("10.0.0.0/8", "http://10.1.2.3/v1", True),
        ("10.0.0.0/8", "http://11.1.2.3/v1", False),
        ("10.1.2.3", "http://10.1.2.3:8000/v1", True),
        ("10.1.2.3:8000", "http://10.1.2.3:8000/v1", True),
        ("10.1.2.3:8001", "http://10.1.2.3:8000/v1", False),
        ("1.2.3", "http://10.1.2.3/v1", False),
        (".2.3", "http://10.1.2.3/v1", False),
        ("fd00::/8", "http://[fd00::1]:8000/v1", True),
        ("[fd00::1]", "http://[fd00::1]:8000/v1", True),
        ("fd00::1", "http://[fd00::1]:8000/v1", True),
        ("[fd00::1]:8000", "http://[fd00::1]:8000/v1", True),
        ("[fd00::1]:8001", "http://[fd00::1]:8000/v1", False),
        ("10.0.0.0/8", OPENAI, False),
        ("10.0.0.0/99", "http://10.1.2.3/v1", False),
    ],
)
def test_exceptions(no_proxy, url, expected):
    assert direct(url, no_proxy) is expected


LABEL = st.text("abcdefghij0123456789", min_size=1, max_size=8)
HOSTS = st.lists(LABEL, min_size=2, max_size=4).map(lambda labels: ".".join([*labels, "test"]))


@given(HOSTS, LABEL)
def test_a_host_excepts_itself_and_all_below_it_and_nothing_else(host, label):
    assert direct(f"https://{host}/v1", host)
    assert direct(f"https://{label}.{host}/v1", host)
    assert not direct(f"https://{label}{host}/v1", host)
    assert not direct(f"https://{host}/v1", f"{label}.{host}")


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_network_excepts_the_addresses_in_it(address, prefix):
    network = ipaddress.ip_network(f"{address}/{min(prefix, address.max_prefixlen)}", strict=False)
    host = f"[{address}]" if address.version == 6 else str(address)
    assert direct(f"https://{host}/v1", str(network))


@given(st.text(max_size=40))
def test_whatever_stands_in_the_variable_nothing_breaks(no_proxy):
    assert Proxies(PROXY, PROXY, no_proxy).proxy_of(OPENAI) in {None, PROXY}


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("http://proxy:3128", None),
        ("proxy:3128", None),
        (PROXY, None),
        ("http://[::1]:3128", None),
        ("https://proxy:3128", "plain HTTP"),
        ("socks5://user:secret@proxy:1080", "plain HTTP"),
        ("http://", "not the URL"),
        ("http://proxy:port", "not the URL"),
        ("http://proxy:0", "not the URL"),
        ("http://[::1", "not the URL"),
    ],
)
def test_what_is_no_proxy(proxy, told):
    reason = why_no_proxy(proxy)
    assert (reason is None) if told is None else told in reason
    assert reason is None or "secret" not in reason


def test_passwords_are_not_shown():
    assert "secret" not in repr(Proxies(PROXY, PROXY))
