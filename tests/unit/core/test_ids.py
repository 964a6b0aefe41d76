import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ids import RANDOM_BYTES, uuid7, uuid7_ms

times = st.integers(0, 2**48 - 1)
entropy = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


def test_has_the_layout_of_the_example_in_rfc_9562():
    # Appendix A.6: unix_ts_ms 017F22E279B0, rand_a CC3, rand_b 18C4DC0C0C07398F.
    rand = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert uuid7(0x017F22E279B0, rand.to_bytes(10, "big")) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(times, entropy)
def test_is_a_version_7_uuid_that_tells_its_time(now_ms, random_bytes):
    text = uuid7(now_ms, random_bytes)
    parsed = uuid.UUID(text)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
    assert uuid7_ms(text) == now_ms


@given(times, times, entropy, entropy)
def test_sorts_by_time(one_ms, other_ms, one, other):
    if one_ms < other_ms:
        assert uuid7(one_ms, one) < uuid7(other_ms, other)


@given(times, entropy, entropy)
def test_differs_where_the_random_bits_it_keeps_differ(now_ms, one, other):
    kept = [int.from_bytes(each, "big") & (2**74 - 1) for each in (one, other)]
    assert (uuid7(now_ms, one) == uuid7(now_ms, other)) == (kept[0] == kept[1])


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="10 random bytes"):
        uuid7(0, b"short")
    with pytest.raises(ValueError, match="time"):
        uuid7(2**48, bytes(10))
    for text in ("", "not-a-uuid", str(uuid.UUID(int=0))):
        with pytest.raises(ValueError, match="not a UUIDv7"):
            uuid7_ms(text)
