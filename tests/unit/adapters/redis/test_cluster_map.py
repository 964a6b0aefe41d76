import pytest
from redis.crc import key_slot

from proxy.adapters.redis.cluster import slots_of


def test_the_map_is_read_as_redis_6_and_7_send_it():
    assert slots_of(
        [
            [0, 5460, [b"10.0.0.1", 6379, b"id"], [b"10.0.0.4", 6379, b"id"]],
            [5461, 16383, [None, 6380, b"id", [b"hostname", b"b"]]],
        ]
    ) == ((0, 5460, "10.0.0.1", 6379), (5461, 16383, "", 6380))
    assert slots_of([]) == ()


@pytest.mark.parametrize("reply", [b"OK", None, 3, [b"x"], [[0, 1]], [[0, b"1", [b"h", 1]]], [[0, 1, [b"h"]]]])
def test_anything_else_is_refused(reply):
    with pytest.raises(ValueError, match="slots"):
        slots_of(reply)


@pytest.mark.parametrize(
    ("key", "slot"),
    # The first is the check value of the cluster specification; the rest are what CLUSTER KEYSLOT answers.
    [(b"123456789", 0x31C3), (b"foo", 12_182), (b"{foo}.bar", 12_182), (b"{}foo", 9_500), (b"a{foo}{b}", 12_182)],
)
def test_slots_are_those_of_the_servers(key, slot):
    assert key_slot(key) == slot
