"""Random bytes of the system, taken in blocks: to ask for each few is a call that lets other threads go first."""

from __future__ import annotations

import os

from proxy.core.ids import RANDOM_BYTES

__all__ = ["bytes_of_id"]

_AT_ONCE = 400

_pieces: list[bytes] = []
# What a process inherits from its parent the parent will give out, too.
os.register_at_fork(after_in_child=_pieces.clear)


def bytes_of_id() -> bytes:
    """As many as an identifier takes; no byte is given out twice."""
    try:
        return _pieces.pop()
    except IndexError:
        block = os.urandom(_AT_ONCE * RANDOM_BYTES)
        pieces = [block[at : at + RANDOM_BYTES] for at in range(0, len(block), RANDOM_BYTES)]
        last = pieces.pop()
        _pieces.extend(pieces)
        return last
