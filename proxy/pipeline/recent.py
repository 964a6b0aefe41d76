"""Requests that the cache answered or a limit refused of late: one that comes again, byte for byte, is not read again.

What a body asks for, whether it may be answered twice, and under which digest its answer is kept follow from its bytes,
its headers, its team and its upstream: remembering them changes no answer. Each team has its own, so that how long a
request takes tells nobody what another team has asked.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from proxy.core.asked import Asked
from proxy.ports import CacheAddress

__all__ = ["Body", "Origin", "Recent", "Understood"]

_MAX_BODY_BYTES = 65_536
_MAX_BYTES = 8 * 1024 * 1024
"""Of bodies, of what was read of them, and of the headers they came with."""
_VALUE_BYTES = 64
_CONTAINER_BYTES = 128
"""More than a value takes, and than an object or a list does, of which the garbage collector has to look at each."""
_MAX_KEPT = 4_096
"""Bodies: whatever their size, the garbage collector has to look at what was read of each."""
_MAX_ADDRESSES = 8
"""Of one body, which comes with few sets of headers."""

Body = tuple[str, str, str, bytes]
"""Team, endpoint, the model that the path names, and the bytes."""
Origin = tuple[bytes, bytes, str, str, str, tuple[tuple[str, str], ...]]
"""What a digest is made of beside the body: secret and salt of the team, method, path, upstream, headers."""


class Understood(msgspec.Struct, eq=False, gc=False):
    """What a body asks for, and where answers to it are kept."""

    body: Body
    named: str
    """What the client calls the model."""
    asked: Asked
    prompt_tokens: int | None = None
    """Estimated, where that takes long or was done already."""
    judged: bool = False
    reason: str | None = None
    """Why it cannot be answered twice, once it is judged."""
    held_bytes: int = 0
    """What it was taken to hold when that was last looked at; 0 while it is not kept."""
    addresses: dict[Origin, CacheAddress] = {}
    """Where its answers are, as far as they were asked for of late."""
    has_grown: bool = False
    """An address was noted since."""

    def __repr__(self) -> str:
        return f"Understood(named={self.named!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("named", self.named)]

    def judge(self, reason: str | None) -> None:
        """Remember whether it may be answered twice."""
        self.judged, self.reason = True, reason

    def note(self, origin: Origin, address: CacheAddress) -> None:
        """Remember where an answer is."""
        if len(self.addresses) >= _MAX_ADDRESSES:
            self.addresses.clear()
        self.addresses[origin] = address
        self.has_grown = True


class Recent:
    """Of one worker: the latest that were answered from the cache or refused, as many as there is room for."""

    __slots__ = ("_bytes", "_kept")

    def __init__(self) -> None:
        self._kept: OrderedDict[Body, Understood] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Requests remembered."""
        return len(self._kept)

    def find(self, body: Body) -> Understood | None:
        """What was understood of the same body."""
        if len(body[-1]) > _MAX_BODY_BYTES:
            return None  # to hash it takes a while, and it is not here
        found = self._kept.get(body)
        if found is not None:
            self._kept.move_to_end(body)
        return found

    def keep(self, understood: Understood) -> None:
        """Remember one that came again, or will: most never do."""
        if len(understood.body[-1]) > _MAX_BODY_BYTES or understood.body in self._kept:
            return
        self._kept[understood.body] = understood
        self._weigh(understood)

    def look_again(self, understood: Understood) -> None:
        """Count what was noted of one since it was kept, if it is: heads may be as large as bodies."""
        if understood.has_grown and understood.held_bytes:
            self._weigh(understood)

    def _weigh(self, understood: Understood) -> None:
        # A thread may note another address meanwhile.
        held_bytes = _held_bytes(understood.body[-1]) + sum(map(_noted_bytes, tuple(understood.addresses)))
        self._bytes += held_bytes - understood.held_bytes
        understood.held_bytes, understood.has_grown = held_bytes, False
        while self._bytes > _MAX_BYTES or len(self._kept) > _MAX_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.held_bytes
            oldest.held_bytes = 0


def _held_bytes(raw: bytes) -> int:
    """What a body takes as it is and as it was read, told by its bytes: three of them may have become an object."""
    return len(raw) + _VALUE_BYTES * raw.count(b",") + _CONTAINER_BYTES * (raw.count(b"{") + raw.count(b"["))


def _noted_bytes(origin: Origin) -> int:
    """What it takes to know where an answer is: nearly all of it is path and headers."""
    _, _, _, path, _, headers = origin
    return len(path) + sum(len(name) + len(value) + 3 * _VALUE_BYTES for name, value in headers)
