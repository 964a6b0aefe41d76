"""Requests that the cache answered of late: one that comes again, byte for byte, is not read again.

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
_MAX_BYTES = 4 * 1024 * 1024
"""Of bodies; what was read of them takes some four times as much."""
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
    judged: bool = False
    reason: str | None = None
    """Why it cannot be answered twice, once it is judged."""
    addresses: dict[Origin, CacheAddress] = {}
    """Where its answers are, as far as they were asked for of late."""

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


class Recent:
    """Of one worker: the latest that were answered from the cache, as many as there is room for."""

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
        """Remember one that came again: most never do."""
        size_bytes = len(understood.body[-1])
        if size_bytes > _MAX_BODY_BYTES or understood.body in self._kept:
            return
        self._kept[understood.body] = understood
        self._bytes += size_bytes
        while self._bytes > _MAX_BYTES or len(self._kept) > _MAX_KEPT:
            oldest, _ = self._kept.popitem(last=False)
            self._bytes -= len(oldest[-1])
