from __future__ import annotations

import os

import pytest

from proxy.core.ids import RANDOM_BYTES
from proxy.web.entropy import bytes_of_id

SEVERAL_BLOCKS = 2_000


def test_no_byte_is_given_out_twice() -> None:
    given = [bytes_of_id() for _ in range(SEVERAL_BLOCKS)]
    assert {len(each) for each in given} == {RANDOM_BYTES}
    assert len(set(given)) == SEVERAL_BLOCKS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no children that inherit")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_gives_out_none_of_its_parents() -> None:
    bytes_of_id()  # the block is taken
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"".join(bytes_of_id() for _ in range(100)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 100 * RANDOM_BYTES)
    os.close(reading)
    os.close(writing)
    pieces = {theirs[at : at + RANDOM_BYTES] for at in range(0, len(theirs), RANDOM_BYTES)}
    assert len(pieces) == 100
    assert pieces.isdisjoint(bytes_of_id() for _ in range(SEVERAL_BLOCKS))
