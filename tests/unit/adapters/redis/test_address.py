import ssl
from pathlib import Path

import pytest

from proxy.adapters.redis.address import Address, BadRedisUrl, parse_redis_url

TLS = Path(__file__).parents[3] / "support" / "tls"
PASSWORD = "s3cr3t-p4ss"


@pytest.mark.parametrize(
    ("url", "topology", "addresses"),
    [
        ("redis://", "single", [Address()]),
        ("redis://cache", "single", [Address("cache")]),
        ("redis://cache:7000/3", "single", [Address("cache", 7_000, db=3)]),
        ("redis://cache?db=3&client_name=us", "single", [Address("cache", db=3, client_name="us")]),
        ("redis://:p%40ss@cache", "single", [Address("cache", password="p@ss")]),
        ("redis://me:pw@[::1]:7000", "single", [Address("::1", 7_000, username="me", password="pw")]),
        ("unix:///run/redis.sock?db=2", "single", [Address(port=0, path="/run/redis.sock", db=2)]),
        ("unix://me:pw@/run/r.sock", "single", [Address(port=0, path="/run/r.sock", username="me", password="pw")]),
        ("redis+cluster://a:1,b", "cluster", [Address("a", 1), Address("b", 6_379)]),
        ("redis+cluster://me:pw@a:1,b:2", "cluster", [Address(h, p, username="me", password="pw") for h, p in
                                                     (("a", 1), ("b", 2))]),
    ],
)  # fmt: skip
def test_a_url_names_a_topology_and_addresses(url, topology, addresses):
    parsed = parse_redis_url(url)
    assert (parsed.topology, list(parsed.addresses)) == (topology, addresses)


def test_sentinels_and_their_primary_are_known_by_different_names():
    parsed = parse_redis_url(f"redis+sentinel://me:{PASSWORD}@a,b:2/mymaster/4?sentinel_username=s&sentinel_password=t")
    assert parsed.topology == "sentinel"
    assert parsed.master == "mymaster"
    assert list(parsed.addresses) == [
        Address("a", 26_379, username="s", password="t"),
        Address("b", 2, username="s", password="t"),
    ]
    assert parsed.primary.at("c", 3) == Address("c", 3, db=4, username="me", password=PASSWORD)


def test_tls_trusts_the_named_authority_alone_and_checks_names():
    context = parse_redis_url(f"rediss://cache?ssl_ca_certs={TLS}/ca.pem").addresses[0].tls
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    subjects = [dict(pair[0] for pair in authority["subject"]) for authority in context.get_ca_certs()]
    assert subjects == [{"commonName": "Tollgate test authority"}]


def test_tls_may_be_told_not_to_verify_and_shows_a_certificate_of_ours():
    url = f"rediss+cluster://a,b?ssl_cert_reqs=none&ssl_certfile={TLS}/client.pem"
    contexts = {address.tls for address in parse_redis_url(url).addresses}
    assert [(context.verify_mode, context.check_hostname) for context in contexts] == [(ssl.CERT_NONE, False)]


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@cache",
        f"redis://:{PASSWORD}/x@cache",
        f"redis://:{PASSWORD}@cache:port",
        f"redis://:{PASSWORD}@cache:99999",
        f"redis://:{PASSWORD}@[::1",
        f"redis://:{PASSWORD}@cache/db",
        f"redis://:{PASSWORD}@cache?db={PASSWORD}",
        f"redis://:{PASSWORD}@cache?socket_timeout=3",
        f"redis://:{PASSWORD}@cache?ssl_ca_certs=/ca.pem",
        f"redis://:{PASSWORD}@a,b",
        f"rediss://:{PASSWORD}@cache?ssl_ca_certs=/nowhere.pem",
        f"rediss://:{PASSWORD}@cache?ssl_cert_reqs={PASSWORD}",
        f"rediss://:{PASSWORD}@cache?ssl_certfile={__file__}",
        f"unix://:{PASSWORD}@",
        f"redis+sentinel://:{PASSWORD}@a:1",
        f"redis+cluster://:{PASSWORD}@a:1/2",
        f"redis+cluster://:{PASSWORD}@a:1?sentinel_password=x",
    ],
)
def test_what_is_not_understood_is_refused_without_repeating_the_password(url):
    with pytest.raises(BadRedisUrl) as caught:
        parse_redis_url(url)
    assert PASSWORD not in f"{caught.value} {caught.value!r}"
    assert caught.value.__cause__ is None


def test_an_address_shows_no_password():
    address = Address("cache", 1, username="me", password=PASSWORD)
    assert PASSWORD not in f"{address} {address!r}"
    assert str(Address("::1", 1)) == "[::1]:1"
    assert str(Address(path="/run/r.sock")) == "unix:/run/r.sock"
