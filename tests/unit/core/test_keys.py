import hashlib
import hmac
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.core.keys import (
    RANDOM_BYTES,
    ParsedKey,
    Peppers,
    keyed_hash,
    kid_of,
    make_key,
    may_be_imported,
    parse,
    secret_behind,
    why_guessable,
    why_not_imported,
)
from proxy.core.principal import KeySecret

BASE62 = string.digits + string.ascii_letters
entropy = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


def key_of(random_bytes):
    return make_key(random_bytes)[1]


@given(entropy)
def test_a_made_key_has_the_published_form_and_parses(random_bytes):
    kid, key = make_key(random_bytes)
    head, underscore, tail = key[6:18], key[18], key[19:]
    assert key.startswith("sk-tg_")
    assert (head, underscore, len(tail)) == (kid, "_", 43 + 6)
    assert set(head + tail) <= set(BASE62)
    assert parse(key) == ParsedKey(kid=kid, text=key)
    assert kid_of(key) == kid_of(f"sk-tg_{kid}") == kid_of(kid) == kid


@given(entropy, entropy)
def test_keys_differ_where_their_secret_bytes_differ(one, other):
    assert (key_of(bytes(16) + one[16:]) == key_of(bytes(16) + other[16:])) == (one[16:] == other[16:])


@given(entropy, st.integers(0, 67), st.sampled_from(BASE62))
def test_one_wrong_character_is_noticed(random_bytes, at, character):
    key = key_of(random_bytes)
    wrong = key[:at] + character + key[at + 1 :]
    assert (parse(wrong) is None) == (wrong != key)


@given(entropy, st.integers(19, 66))
def test_swapped_neighbours_are_noticed(random_bytes, at):
    key = key_of(random_bytes)
    wrong = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    assert (parse(wrong) is None) == (wrong != key)


def test_the_checksum_is_crc32_of_everything_before_it():
    key = key_of(bytes(range(48)))
    number = 0
    for digit in key[-6:]:
        number = number * 62 + (string.digits + string.ascii_uppercase + string.ascii_lowercase).index(digit)
    assert number == zlib.crc32(key[:-6].encode())


@given(st.text(max_size=90) | st.text(BASE62 + "-_", min_size=68, max_size=68).map(lambda t: "sk-tg_" + t[6:]))
def test_garbage_is_none(text):
    assert parse(text) is None


@pytest.mark.parametrize("tail", ["\n", " ", "x"])
def test_nothing_may_follow(tail):
    assert parse(key_of(bytes(48)) + tail) is None


@pytest.mark.parametrize("text", ["", "sk-", "sk-tg_", "short", "sk-tg_short", "zwölf_zeichen"])
def test_no_kid_in_what_has_none(text):
    assert kid_of(text) is None


def test_takes_exactly_its_random_bytes():
    with pytest.raises(ValueError, match="48 random bytes"):
        make_key(bytes(32))


def test_the_secret_is_in_no_repr():
    key = key_of(bytes(range(48)))
    parsed = parse(key)
    peppers = Peppers(1, {1: b"pepper" * 6})
    assert key[19:] not in repr(parsed)
    assert "pepperpepper" not in repr(peppers)


@given(st.binary(min_size=32, max_size=32), st.text(BASE62), st.text(BASE62))
def test_the_hash_is_hmac_sha256_and_finds_its_text_alone(pepper, text, other):
    expected = hmac.new(pepper, text.encode(), hashlib.sha256).digest()
    assert keyed_hash(pepper, text) == expected
    peppers = Peppers(1, {1: pepper})
    assert peppers.hash(text) == (1, expected)
    secret = secret_of(peppers, text)
    assert secret_behind(peppers.hashes(text), [secret]) == secret
    assert (secret_behind(peppers.hashes(other), [secret]) == secret) == (other == text)


def secret_of(peppers, text, serial=1):
    return KeySecret(serial, *peppers.hash(text), created_at_ms=0)


def test_a_key_is_checked_under_the_pepper_it_was_hashed_with():
    old = Peppers(1, {1: b"a" * 32})
    both = Peppers(2, {1: b"a" * 32, 2: b"b" * 32})
    first, second = secret_of(old, "key"), secret_of(both, "key")
    assert (first.pepper_id, second.pepper_id) == (1, 2)
    assert first.secret_hash != second.secret_hash
    assert secret_behind(both.hashes("key"), [first]) == first
    assert secret_behind(both.hashes("key"), [second]) == second
    assert secret_behind(both.hashes("key"), [replace(first, pepper_id=2)]) is None


def test_an_unknown_pepper_matches_nothing_not_even_an_empty_hash():
    peppers = Peppers(1, {1: b"a" * 32})
    secret = secret_of(peppers, "key")
    for unknown in (replace(secret, pepper_id=9), replace(secret, pepper_id=9, secret_hash=bytes(32))):
        assert secret_behind(peppers.hashes("key"), [unknown]) is None
    assert secret_behind(peppers.hashes("key"), []) is None


def test_each_of_several_secrets_opens():
    peppers = Peppers(1, {1: b"a" * 32})
    secrets = [secret_of(peppers, text, serial) for serial, text in enumerate(("old", "new"), 1)]
    for text, secret in zip(("old", "new"), secrets, strict=True):
        assert secret_behind(peppers.hashes(text), secrets) == secret
    assert secret_behind(peppers.hashes("else"), secrets) is None


def test_the_same_is_done_for_a_key_that_is_known_and_for_one_that_is_not(monkeypatch):
    peppers = Peppers(2, {1: b"a" * 32, 2: b"b" * 32})
    done = []
    digest, compare = hmac.digest, hmac.compare_digest
    monkeypatch.setattr(hmac, "digest", lambda *given: done.append("hash") or digest(*given))
    monkeypatch.setattr(hmac, "compare_digest", lambda *given: done.append("compare") or compare(*given))
    for secrets, text in (
        ([], "unknown"),
        ([KeySecret(1, 1, b"x" * 32, 0)], "wrong"),
        ([KeySecret(1, 9, b"x" * 32, 0)], "under a pepper that is not here"),
        ([secret_of(Peppers(2, {2: b"b" * 32}), "right")], "right"),
    ):
        done.clear()
        secret_behind(peppers.hashes(text), secrets)
        assert done == ["hash", "hash", "compare"], text


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_fingerprint_tells_peppers_apart_and_says_nothing_of_them(one, other):
    peppers = Peppers(1, {1: one, 2: other})
    assert (peppers.fingerprint(1) == peppers.fingerprint(2)) == (one == other)
    assert len(peppers.fingerprint(1)) == 16
    assert one[:8] not in peppers.fingerprint(1)


@given(st.text(max_size=40))
def test_what_may_be_imported_can_be_sent_in_a_header_as_it_is(text):
    reason = why_not_imported(text)
    assert may_be_imported(text) == (not reason)
    if not reason:
        assert text
        assert text == text.strip()
        assert text.isprintable()
        assert parse(text) is None
        text.encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sk-proj-abc", ""),
        ("my team key 1", ""),
        ("schl\u00fcssel mit \u00fc", ""),
        ("a" * 512, ""),
        ("", "1 to 512"),
        ("a" * 513, "1 to 512"),
        (" leading", "space"),
        ("trailing ", "space"),
        ("two\nlines", "printed"),
        ("bell\x07", "printed"),
        ("\u202ereversed", "printed"),
        ("\ud800", "printed"),
        ("sk-tg_anything", "issue one"),
    ],
)
def test_what_a_key_from_elsewhere_may_look_like(text, reason):
    found = why_not_imported(text)
    assert (reason in found) if reason else not found
    assert text[:20] not in found or not text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("123456789012345", "16"),
        ("1234567890123456", ""),
        ("a" * 40, "different"),
        ("abcde" * 8, "different"),
        ("abcdef" * 8, ""),
        ("my team key 1", "16"),
    ],
)
def test_what_can_be_guessed(text, reason):
    found = why_guessable(text)
    assert (reason in found) if reason else not found


def test_another_secret_of_the_same_key_keeps_its_id():
    kid, key = make_key(bytes(range(48)))
    again, other = make_key(bytes(range(48, 96)), kid)
    assert (again, other[:18]) == (kid, key[:18])
    assert other != key
    assert parse(other) == ParsedKey(kid=kid, text=other)
