"""What a browser keeps: whose it is and until when, and nothing that anybody else could have made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core import keys, page_session
from proxy.core.keys import Peppers
from proxy.core.page_session import SESSION_MS, PageSession, read_session, signed

NOW = 1_795_000_000_000
ONE, OTHER = b"1" * 32, b"2" * 32
PEPPERS = Peppers(2, {1: ONE, 2: OTHER})
SESSION = PageSession("FM5xI2AQhjBI", 3, NOW + SESSION_MS)


def test_what_was_signed_is_read_and_is_fit_for_a_cookie():
    text = signed(SESSION, PEPPERS)
    assert read_session(text, PEPPERS, NOW) == SESSION
    assert not set(text) - set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.")


def test_it_ends():
    text = signed(SESSION, PEPPERS)
    assert read_session(text, PEPPERS, SESSION.ends_at_ms - 1) == SESSION
    assert read_session(text, PEPPERS, SESSION.ends_at_ms) is None


def test_none_lasts_longer_than_one_can():
    assert read_session(signed(PageSession("k", 1, NOW + SESSION_MS + 1), PEPPERS), PEPPERS, NOW) is None


def test_it_goes_with_its_pepper():
    text = signed(SESSION, Peppers(1, {1: ONE}))
    assert read_session(text, PEPPERS, NOW) == SESSION, "an old one goes on"
    assert read_session(text, Peppers(2, {2: OTHER}), NOW) is None, "until it is retired"
    assert read_session(text, Peppers(1, {1: OTHER}), NOW) is None, "and another of its version is another"


def test_a_version_that_nobody_has_is_no_way_around_the_signature():
    forged = signed(SESSION, Peppers(9, {9: bytes(32)}))
    assert read_session(forged, PEPPERS, NOW) is None


@given(st.data())
def test_no_other_text_is_taken(data):
    text = signed(SESSION, PEPPERS)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(exclude_characters=text[at])) + text[at + 1 :]
    assert read_session(changed, PEPPERS, NOW) is None
    assert read_session(text + data.draw(st.text(min_size=1)), PEPPERS, NOW) is None
    assert read_session(text[:at], PEPPERS, NOW) is None


@given(st.text())
def test_anything_at_all_is_read_as_nobody(text):
    assert read_session(text, PEPPERS, NOW) is None


def test_the_secret_of_sessions_is_not_that_of_keys():
    from proxy.core.keys import keyed_hash

    said, _, signature = signed(SESSION, PEPPERS).rpartition(".")
    assert keyed_hash(OTHER, said).hex() != signature


def test_no_key_that_a_database_keeps_hashes_to_the_secret_of_sessions():
    assert not keys.may_be_imported(page_session._PURPOSE)
    assert keys.parse(page_session._PURPOSE) is None
