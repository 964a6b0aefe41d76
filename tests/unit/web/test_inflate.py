"""Content codings of requests: what they unpack to, what is refused, and how much of it is ever held."""

import gzip
import sys
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.envelope import zstd
from proxy.core.errors import BodyTooLarge, InvalidRequest
from proxy.web.inflate import check_coding, inflate

PLAIN = b'{"model": "gpt-4o-mini", "messages": []}' * 50
DEFLATED = zlib.compress(PLAIN)
BARE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
BARE_DEFLATED = BARE.compress(PLAIN) + BARE.flush()
PACKED = {"gzip": gzip.compress(PLAIN), "deflate": DEFLATED, "zstd": zstd.compress(PLAIN)}
ROOM = 10_000_000


@pytest.mark.parametrize("coding", PACKED)
def test_what_was_packed_is_unpacked(coding):
    assert check_coding(coding)
    assert inflate(PACKED[coding], coding, ROOM) == PLAIN
    assert inflate(PACKED[coding], coding.upper(), len(PLAIN)) == PLAIN
    with pytest.raises(BodyTooLarge):
        inflate(PACKED[coding], coding, len(PLAIN) - 1)


def test_deflate_without_its_frame():
    assert inflate(BARE_DEFLATED, "deflate", ROOM) == PLAIN


def test_several_streams_are_one_body():
    for coding in ("gzip", "zstd"):
        assert inflate(PACKED[coding] * 3, coding, ROOM) == PLAIN * 3
        with pytest.raises(InvalidRequest, match="more than 64"):
            inflate(PACKED[coding] * 65, coding, ROOM)


@pytest.mark.parametrize("coding", PACKED)
def test_broken_bodies(coding):
    packed = PACKED[coding]
    for broken in (b"", packed[:-1], packed[: len(packed) // 2], packed + b"more", PLAIN, b"\x00" + packed):
        with pytest.raises(InvalidRequest, match=f"not {coding}"):
            inflate(broken, coding, ROOM)


@pytest.mark.parametrize("coding", ["gzip, gzip", "gzip,zstd", "br", "compress", "rot13", "x-gzip", "gzip;q=1"])
def test_codings_that_are_not_taken(coding):
    with pytest.raises(InvalidRequest) as caught:
        check_coding(coding)
    assert caught.value.code == "unsupported_content_encoding"
    assert "gzip" in caught.value.message


def test_no_coding():
    assert not check_coding("")
    assert not check_coding(" Identity ")


def test_without_zstd_a_client_is_told_what_to_install(monkeypatch):
    for name in ("compression", "backports", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidRequest, match=r"tollgate\[server\]"):
        check_coding("zstd")
    assert inflate(PACKED["gzip"], "gzip", ROOM) == PLAIN


def zstd_bomb(times: int) -> bytes:
    """`times` blocks of 128 KiB of one byte each, four bytes a block: a frame as RFC 8878 has it."""
    head = zstd.compress(b"")[:4] + bytes([0b0000_0000, 0b0101_1000])
    blocks = [
        (128 * 1024 << 3 | 1 << 1 | (number == times - 1)).to_bytes(3, "little") + b" " for number in range(times)
    ]
    return head + b"".join(blocks)


def test_a_bomb_is_let_go_at_the_bound():
    packer = zlib.compressobj(9, wbits=31)
    block = b"\0" * 1_000_000
    in_gzip = b"".join(packer.compress(block) for _ in range(100)) + packer.flush()
    in_zstd = zstd_bomb(80_000)
    assert zstd.ZstdDecompressor().decompress(zstd_bomb(2)) == b" " * 256 * 1024
    assert len(in_zstd) < 350_000  # ten gigabytes
    for coding, bomb in (("gzip", in_gzip), ("zstd", in_zstd)):
        tracemalloc.start()
        with pytest.raises(BodyTooLarge):
            inflate(bomb, coding, 4_000_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 24_000_000


def test_a_window_larger_than_http_allows_is_refused():
    wide = {zstd.CompressionParameter.compression_level: 1, zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=wide)
    packed = packer.compress(PLAIN) + packer.flush()
    assert zstd.ZstdDecompressor().decompress(packed) == PLAIN
    with pytest.raises(InvalidRequest):
        inflate(packed, "zstd", ROOM)


@given(data=st.binary(max_size=200), coding=st.sampled_from(sorted(PACKED)))
def test_whatever_comes_is_read_or_refused(data, coding):
    with suppress(InvalidRequest, BodyTooLarge):
        assert len(inflate(data, coding, 1_000)) <= 1_000
