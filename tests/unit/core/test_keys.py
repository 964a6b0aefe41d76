import hashlib
import hmac
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.keys import RANDOM_BYTES, ParsedKey, Peppers, keyed_hash, kid_of, make_key, matches, parse

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
def test_the_hash_is_hmac_sha256_and_matches_its_text_alone(pepper, text, other):
    expected = hmac.new(pepper, text.encode(), hashlib.sha256).digest()
    assert keyed_hash(pepper, text) == expected
    assert matches(pepper, text, expected)
    assert matches(pepper, other, expected) == (other == text)


def test_a_key_is_checked_under_the_pepper_it_was_hashed_with():
    old = Peppers(1, {1: b"a" * 32})
    both = Peppers(2, {1: b"a" * 32, 2: b"b" * 32})
    pepper_id, digest = old.hash("key")
    assert pepper_id == 1
    assert both.matches(pepper_id, "key", digest)
    assert both.hash("key")[0] == 2
    assert both.hash("key")[1] != digest
    assert not both.matches(2, "key", digest)


def test_an_unknown_pepper_matches_nothing():
    peppers = Peppers(1, {1: b"a" * 32})
    _, digest = peppers.hash("key")
    assert not peppers.matches(9, "key", digest)
