import base64
import struct
import threading
import tracemalloc

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.adapters import envelope as module
from proxy.adapters.cache_keys import MasterKey, MasterKeys
from proxy.adapters.envelope import OVERHEAD_BYTES, Envelope, Flaw, Unopenable, zstd
from proxy.core.replay import Form
from proxy.ports import CachedAnswer

PLACE, SECRET = "c:growth:{AAAA}", b"s" * 32
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
NOW_MS = 1_800_000_000_000
MAX_BYTES = 100_000
WITH_CHECKSUM = {zstd.CompressionParameter.checksum_flag: 1}
HEADER = struct.Struct(">2sBB8s12sQQI")
property_settings = settings(max_examples=150, deadline=None)

ONE = CachedAnswer(
    200, (("Content-Type", "application/json"),), b'{"a": 1}', "gpt-4o", NOW_MS, 60_000, 3, 4, 5, Form.PLAIN
)


def envelope(*keys, **more):
    return Envelope(MasterKeys.of(*(keys or (NEW,))), **{"max_payload_bytes": MAX_BYTES} | more)


def flaw_of(sealed, by=None, place=PLACE, secret=SECRET, now_ms=NOW_MS):
    with pytest.raises(Unopenable) as caught:
        (by or envelope()).open(place, secret, sealed, now_ms)
    return caught.value.flaw


def opened(sealed, by=None, now_ms=NOW_MS):
    return (by or envelope()).open(PLACE, SECRET, sealed, now_ms)


answers = st.builds(
    CachedAnswer,
    status=st.integers(100, 599),
    headers=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5).map(tuple),
    body=st.binary(max_size=2_000) | st.binary(max_size=20).map(lambda part: part * 100),
    model=st.text(max_size=20),
    stored_at_ms=st.integers(0, NOW_MS),
    ttl_ms=st.integers(NOW_MS + 1, 2**63),
    input_tokens=st.integers(0, 2**63),
    output_tokens=st.integers(0, 2**63),
    cost_pico_usd=st.integers(0, 2**64 - 1),
    form=st.sampled_from(Form),
)


@property_settings
@given(answers)
def test_what_was_sealed_comes_back(answer):
    sealed = envelope().seal(PLACE, SECRET, answer)
    assert len(sealed) <= envelope().max_sealed_bytes
    assert opened(sealed) == answer
    # Behind the header, in which numbers are mostly zeros.
    assert answer.body not in sealed[HEADER.size :] or len(answer.body) < 5


@pytest.mark.parametrize("size", [0, 400, 512, 600, 3_000, 60_000])
def test_it_is_compressed_where_that_makes_it_smaller(size):
    answer = replace(ONE, body=b"abcd" * (size // 4))
    sealed = envelope().seal(PLACE, SECRET, answer)
    assert opened(sealed) == answer
    flags, length = sealed[3], HEADER.unpack_from(sealed)[-1]
    assert flags == (length > 512)
    assert len(sealed) == OVERHEAD_BYTES + length if not flags else len(sealed) < 200 + size // 10


def test_what_does_not_compress_is_no_larger_than_it_was():
    answer = replace(ONE, body=AESGCM(OLD).encrypt(bytes(12), bytes(50_000), None))
    sealed = envelope().seal(PLACE, SECRET, answer)
    assert sealed[3] == 0
    assert opened(sealed) == answer


def test_no_two_envelopes_are_alike():
    assert len({envelope().seal(PLACE, SECRET, ONE) for _ in range(100)}) == 100


def test_an_envelope_is_the_same_for_as_long_as_its_version_is():
    """Two versions of the proxy on one cache: what one of them would not read as the other wrote it, it refuses."""
    known = (
        "VEcBALCNP9mpVSqSAAAAAAAAAAAAAAAAAAABoxhcUAAAAAAAAADqYAAAAD2NCU5ALp9qm9u9iHG8rB+dT8B0Z3yQIdQwd3K32XWChJVw3AH8"
        "1eZnTLzAUoJyOUzOUcDay0u19Egq8SWNmrjXtho3wdiEDhKmG1fnHQ=="
    )
    # One that differs here belongs to another VERSION.
    assert (module.VERSION, base64.b64encode(envelope(random_bytes=bytes).seal(PLACE, SECRET, ONE))) == (
        1,
        known.encode(),
    )
    assert opened(base64.b64decode(known)) == ONE


# Changed, moved, cut


@pytest.mark.parametrize("body", [b"{}", b"word " * 400], ids=["plain", "compressed"])
def test_any_bit_that_is_flipped_is_seen(body):
    by = envelope(NEW, OLD)
    sealed = by.seal(PLACE, SECRET, replace(ONE, body=body))
    of_place = {0: Flaw.GARBAGE, 1: Flaw.GARBAGE, 2: Flaw.VERSION, **dict.fromkeys(range(4, 12), Flaw.UNKNOWN_KEY)}
    for at in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[at] ^= 1 << bit
            assert flaw_of(bytes(changed), by) is of_place.get(at, Flaw.TAG), (at, bit)


def test_one_that_was_cut_or_grew_is_seen():
    sealed = envelope().seal(PLACE, SECRET, ONE)
    for length in range(len(sealed)):
        assert flaw_of(sealed[:length]) is (Flaw.GARBAGE if length < OVERHEAD_BYTES else Flaw.TAG)
    assert flaw_of(sealed + b"\0") is Flaw.TAG


@property_settings
@given(st.binary(max_size=400), st.booleans())
def test_bytes_of_any_kind_are_a_flaw_and_nothing_else(some, looks_like_one):
    start = b"TG\x01\x01" + MasterKey(NEW).id if looks_like_one else b""
    assert flaw_of(start + some) in set(Flaw) - {Flaw.CLOCK}


@pytest.mark.parametrize(
    ("place", "secret"),
    [
        ("c:growth:{AAAB}", SECRET),
        ("c:sales:{AAAA}", SECRET),
        (f"{PLACE}\0", SECRET),
        (PLACE[:-1], SECRET),
        (PLACE, b"t" * 32),
        (PLACE, SECRET + b"\1"),
    ],
)
def test_one_that_is_found_elsewhere_or_by_another_team_does_not_open(place, secret):
    sealed = envelope().seal(PLACE, SECRET, ONE)
    assert flaw_of(sealed, place=place, secret=secret) is Flaw.TAG


def test_the_place_and_the_header_do_not_run_into_each_other():
    sealed = envelope().seal("c:a:{x}T", SECRET, ONE)
    assert flaw_of(sealed, place="c:a:{x}") is Flaw.TAG


# Keys


def test_the_first_key_seals_and_all_open():
    before = envelope(OLD).seal(PLACE, SECRET, ONE)
    rotating, after = envelope(NEW, OLD), envelope(NEW)
    assert opened(before, rotating) == ONE
    assert opened(rotating.seal(PLACE, SECRET, ONE), after) == ONE
    assert flaw_of(before, after) is Flaw.UNKNOWN_KEY
    assert flaw_of(rotating.seal(PLACE, SECRET, ONE), envelope(OLD)) is Flaw.UNKNOWN_KEY


def test_each_team_has_a_key_of_its_own_and_none_is_the_master_key():
    by = envelope()
    keys = {sealed_key(secret) for secret in (SECRET, b"t" * 32)} | {NEW}
    assert len(keys) == 3
    for secret in (SECRET, b"t" * 32):
        sealed = by.seal(PLACE, secret, ONE)
        header, nonce = sealed[: HEADER.size], sealed[12:24]
        AESGCM(sealed_key(secret)).decrypt(nonce, sealed[HEADER.size :], PLACE.encode() + header)


def sealed_key(secret, master=NEW):
    return HKDF(SHA256(), 32, salt=secret, info=b"tollgate cache entry 1").derive(master)


def test_the_keys_at_hand_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "_TEAM_KEYS", 4)
    by = envelope()
    sealed = [by.seal(PLACE, bytes([number]) * 32, ONE) for number in range(20)]
    assert by._team_key.cache_info().currsize == 4
    assert [by.open(PLACE, bytes([number]) * 32, each, NOW_MS) for number, each in enumerate(sealed)] == [ONE] * 20


def test_nothing_shows_its_keys():
    shown = repr((MasterKeys.of(NEW, OLD), MasterKey(NEW), envelope()))
    assert NEW.hex() not in shown
    assert str(NEW)[2:20] not in shown
    assert OLD.hex() not in shown


# Time


def test_it_is_good_to_the_millisecond():
    sealed = envelope().seal(PLACE, SECRET, ONE)
    assert opened(sealed, now_ms=NOW_MS + 59_999) == ONE
    assert opened(sealed, now_ms=NOW_MS + 60_000) is None


def test_one_of_a_machine_that_is_a_little_ahead_was_made_just_now():
    sealed = envelope().seal(PLACE, SECRET, ONE)
    assert opened(sealed, now_ms=NOW_MS - 10_000) == replace(ONE, stored_at_ms=NOW_MS - 10_000)
    assert flaw_of(sealed, now_ms=NOW_MS - 10_001) is Flaw.CLOCK


# Size, and what a holder of the key may have sealed


def forged(payload, *, flags=1, length=None, created_ms=NOW_MS, life_ms=60_000):
    """An envelope that is in order but for what it holds."""
    nonce = bytes(12)
    header = HEADER.pack(b"TG", 1, flags, MasterKey(NEW).id, nonce, created_ms, life_ms, length or len(payload))
    return header + AESGCM(sealed_key(SECRET)).encrypt(nonce, payload, PLACE.encode() + header)


def test_a_forged_one_that_is_right_opens():
    assert (
        opened(forged(module._encode(module._Payload(200, (), b"x", "m", Form.PLAIN, 1, 2, 3)), flags=0)).body == b"x"
    )


@pytest.fixture(scope="module")
def bomb():
    """Four gigabytes of nothing, in a hundred and some kilobytes; and a frame that says nothing of its size."""
    compressor = zstd.ZstdCompressor(level=1)
    block = bytes(2**24)
    return b"".join([*(compressor.compress(block) for _ in range(256)), compressor.flush()])


@pytest.mark.parametrize("length", [50_000, 2**32 - 1])
def test_a_bomb_is_not_blown_up(bomb, length):
    by = envelope(max_payload_bytes=1_000_000)
    sealed = forged(bomb, length=length)
    tracemalloc.start()
    try:
        flaw = flaw_of(sealed, by)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert flaw is (Flaw.DECOMPRESS if length == 50_000 else Flaw.TOO_LARGE)
    assert peak_bytes < 2_000_000


def test_a_frame_that_wants_a_large_window_is_refused_before_any_is_made():
    wide = {zstd.CompressionParameter.compression_level: 1, zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=wide)
    frame = compressor.compress(b"x" * 900) + compressor.flush()
    assert zstd.ZstdDecompressor().decompress(frame) == b"x" * 900
    assert flaw_of(forged(frame, length=900)) is Flaw.DECOMPRESS


@pytest.mark.parametrize(
    ("payload", "more", "flaw"),
    [
        (zstd.compress(b"x" * 900), {"length": 899}, Flaw.DECOMPRESS),
        (zstd.compress(b"x" * 900), {"length": 901}, Flaw.DECOMPRESS),
        (zstd.compress(b"x" * 900)[:-2], {"length": 900}, Flaw.DECOMPRESS),
        (zstd.compress(b"x" * 900) + b"more", {"length": 900}, Flaw.DECOMPRESS),
        (zstd.compress(b"x" * 900, options=WITH_CHECKSUM)[:-4], {"length": 900}, Flaw.DECOMPRESS),
        (b"no frame", {"length": 900}, Flaw.DECOMPRESS),
        (b"", {"length": 900}, Flaw.DECOMPRESS),
        (b"x" * 900, {"flags": 0, "length": 901}, Flaw.DECOMPRESS),
        (b"x" * 900, {"flags": 0}, Flaw.GARBAGE),
        (b"x" * 900, {"flags": 2}, Flaw.GARBAGE),
        (zstd.compress(b"x" * 900), {"flags": 3, "length": 900}, Flaw.GARBAGE),
        (b"\x91" * 900, {"flags": 0}, Flaw.GARBAGE),
        (module._encode([200, [], b"", "m", "other", 1, 2, 3]), {"flags": 0}, Flaw.GARBAGE),
        (module._encode([200, [], b"", "m", "plain", 1, 2, 3, 4]), {"flags": 0}, Flaw.GARBAGE),
        (module._encode([200, [["a"]], b"", "m", "plain", 1, 2, 3]), {"flags": 0}, Flaw.GARBAGE),
        (b"\x98\xcc\xc8\x90\xc4\x00\xa1\xff\xa5plain\x01\x02\x03", {"flags": 0}, Flaw.GARBAGE),
    ],
)
def test_what_holds_no_answer_is_a_flaw(payload, more, flaw):
    assert flaw_of(forged(payload, **more)) is flaw


@property_settings
@given(st.binary(max_size=300), st.sampled_from([0, 1, 255]), st.integers(1, 2**32 - 1), st.booleans())
def test_whatever_a_holder_of_the_key_has_sealed_is_a_flaw_and_nothing_else(payload, flags, length, is_a_frame):
    content = zstd.compress(payload) if is_a_frame else payload
    assert flaw_of(forged(content, flags=flags, length=length)) in {Flaw.DECOMPRESS, Flaw.TOO_LARGE, Flaw.GARBAGE}


def test_what_is_too_large_is_neither_sealed_nor_opened():
    small, large = envelope(max_payload_bytes=1_000), envelope(max_payload_bytes=100_000)
    answer = replace(ONE, body=b"x" * 1_000)
    assert small.seal(PLACE, SECRET, answer) is None
    assert flaw_of(large.seal(PLACE, SECRET, answer), small) is Flaw.TOO_LARGE
    incompressible = AESGCM(OLD).encrypt(bytes(12), bytes(1_200), None)
    assert flaw_of(large.seal(PLACE, SECRET, replace(ONE, body=incompressible)), small) is Flaw.TOO_LARGE
    assert small.seal(PLACE, SECRET, replace(ONE, body=b"x" * 900)) is not None


@pytest.mark.parametrize(
    "change", [{"cost_pico_usd": 2**64}, {"ttl_ms": -1}, {"stored_at_ms": 2**64}, {"model": "\ud800"}]
)
def test_what_no_envelope_holds_is_not_sealed(change):
    assert envelope().seal(PLACE, SECRET, replace(ONE, **change)) is None


def test_the_weight_is_what_it_says_of_itself():
    sealed = envelope().seal(PLACE, SECRET, replace(ONE, body=b"x" * 50_000))
    assert len(sealed) < 500
    assert 50_000 < Envelope.weight_bytes(sealed) < 50_200
    assert Envelope.weight_bytes(b"x" * 5) == 5


def test_threads_may_share_it():
    by = envelope(max_payload_bytes=2_000_000)
    bodies = [bytes([number]) * size for number, size in enumerate((1_000, 300_000, 5_000, 1_000_000))]
    failed = []

    def work(body):
        for _ in range(30):
            answer = replace(ONE, body=body)
            if opened(by.seal(PLACE, SECRET, answer), by) != answer:
                failed.append(len(body))

    threads = [threading.Thread(target=work, args=[body]) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
