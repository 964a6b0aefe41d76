"""Certificates: what is served, what is trusted, and what is told when a file is no good."""

import ssl
from pathlib import Path

import pytest

from proxy.adapters.certificates import CertificateUnusable, ListenerCertificate, client_context, listener_context
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "127.0.0.1") -> ssl.SSLObject:
    """The client's side of a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    left = {ours, theirs}
    for _ in range(10):
        for side in tuple(left):
            try:
                side.do_handshake()
                left.discard(side)
            except ssl.SSLWantReadError:
                pass
        if not left:
            return ours
    raise AssertionError("the handshake does not end")


def subject(connection: ssl.SSLObject) -> str:
    return connection.getpeercert()["subject"][0][0][1]


def test_a_pair_is_served_with_tls_1_2_or_newer(authority):
    server = listener_context(*authority.issue("good"))
    connection = shake(server, client_context(authority.file))
    assert subject(connection) == "good"
    assert connection.version() == "TLSv1.3"
    assert server.minimum_version is ssl.TLSVersion.TLSv1_2
    old = client_context(authority.file)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shake(server, old)


def test_http_1_1_is_what_is_spoken(authority):
    client = client_context(authority.file)
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert shake(listener_context(*authority.issue("alpn")), client).selected_alpn_protocol() == "http/1.1"


def test_what_cannot_be_served_is_said_in_plain_words(authority, tmp_path):
    good, other = authority.issue("one"), authority.issue("two")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    hidden = authority.issue("hidden", password=b"a-password")
    cases = {
        (good[0], other[1]): "is not the key of",
        (good[0], empty): "no certificate and its key",
        (empty, good[1]): "no certificate and its key",
        (good[1], good[0]): "no certificate and its key",
        (tmp_path / "none.crt", good[1]): "cannot read .*none.crt: No such file",
        (good[0], tmp_path / "none.key"): "cannot read .*none.key: No such file",
        hidden: "is encrypted",
    }
    for files, told in cases.items():
        with pytest.raises(CertificateUnusable, match=told) as caught:
            listener_context(*files)
        assert "BEGIN" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_authorities_of_ones_own_are_trusted_beside_the_systems(authority, tmp_path):
    plain, more = client_context(None), client_context(authority.file)
    assert more.cert_store_stats()["x509_ca"] == plain.cert_store_stats()["x509_ca"] + 1
    for context in (plain, more):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
    server = listener_context(*authority.issue("upstream"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, plain)
    assert subject(shake(server, more)) == "upstream"
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for file, told in ((empty, "holds no certificates"), (tmp_path / "none", "No such file")):
        with pytest.raises(CertificateUnusable, match=told):
            client_context(file)


def put(source: tuple[Path, Path], place: tuple[Path, Path]) -> None:
    """As certificates are rotated: a whole file takes the place of another."""
    for new, old in zip(source, place, strict=True):
        beside = old.with_suffix(".new")
        beside.write_bytes(new.read_bytes())
        beside.replace(old)


@pytest.mark.parametrize("name", ["127.0.0.1", None], ids=["named", "unnamed"])
def test_a_certificate_is_followed(authority, name):
    place = authority.issue("followed")
    certificate = ListenerCertificate(*place)
    client = client_context(authority.file)
    client.check_hostname = False
    assert subject(shake(certificate.context, client, name)) == "followed"
    assert certificate.look() is False
    put(authority.issue("next"), place)
    assert certificate.look() is True
    assert subject(shake(certificate.context, client, name)) == "next"
    assert certificate.look() is False


def test_half_a_pair_changes_nothing_until_the_other_half_is_there(authority):
    place = authority.issue("whole")
    certificate = ListenerCertificate(*place)
    client = client_context(authority.file)
    following = authority.issue("after")
    put((following[0], place[1]), place)
    with pytest.raises(CertificateUnusable, match="is not the key of"):
        certificate.look()
    assert certificate.look() is False, "said once"
    assert subject(shake(certificate.context, client)) == "whole"
    put(following, place)
    assert certificate.look() is True
    assert subject(shake(certificate.context, client)) == "after"


def test_files_that_are_gone_for_a_moment_change_nothing(authority):
    place = authority.issue("kept")
    certificate = ListenerCertificate(*place)
    content = place[0].read_bytes()
    place[0].unlink()
    with pytest.raises(CertificateUnusable, match="No such file"):
        certificate.look()
    assert subject(shake(certificate.context, client_context(authority.file))) == "kept"
    place[0].write_bytes(content)
    assert certificate.look() is True
