import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import Overloaded
from proxy.web.room import BodyRoom


def test_it_is_full_at_its_size_and_not_before():
    room = BodyRoom(10)
    room.take(10)
    with pytest.raises(Overloaded):
        room.take(1)
    room.give_back(4)
    room.take(4)


@given(st.integers(1, 100), st.lists(st.integers(0, 60)))
def test_never_more_is_held_than_there_is_room_for_and_a_refusal_takes_nothing(size, bodies):
    room, held = BodyRoom(size), []
    for body in bodies:
        try:
            room.take(body)
        except Overloaded:
            assert sum(held) + body > size
        else:
            held.append(body)
        assert room.held_bytes == sum(held) <= size
    for body in held:
        room.give_back(body)
    assert room.held_bytes == 0
