"""The upstream side of the ports: what is sent, whose turn it is, what comes back. It is imported from `ports.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from proxy.core.discreet import Discreet
from proxy.core.fair_queue import QueueRefusal

__all__ = [
    "Body",
    "Holding",
    "Patch",
    "QueueWatch",
    "Turn",
    "Upstream",
    "UpstreamAnswer",
    "UpstreamRequest",
]


class Body(Protocol):
    """A request's body that is not held in memory whole."""

    @property
    def length(self) -> int | None:
        """Its size in bytes; None: that is known at its end."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether it can be read from its beginning now; one that is read as it comes can until that has begun."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body from its beginning, in pieces of no particular size.

        Raises `BodyTooLarge`, `InvalidRequest` and `ConnectionResetError` for one that its client is sending.
        """
        ...


class Patch(Discreet, frozen=True, gc=False):
    """Bytes of a body that others take the place of."""

    hidden = frozenset({"data"})

    start: int
    end: int
    data: bytes


class Holding(Protocol):
    """Where one body is kept until upstream has answered: in memory while it is small, then on disk.

    Full or failing: `take` raises `Overloaded`.
    """

    async def take(self, data: bytes) -> None:
        """Keep what comes next."""
        ...

    def body(self, patch: Patch | None = None) -> Body:
        """All of it, to be read any number of times until it is closed; with `patch` instead of what that names."""
        ...

    def close(self) -> None:
        """Forget it. Idempotent."""
        ...


class UpstreamRequest(Discreet, frozen=True, gc=False):
    """One call to make upstream."""

    hidden = frozenset({"headers", "body"})

    method: str
    path_qs: str
    """Path below the upstream's base URL, and query, as the client sent them (`/chat/completions?x=1`)."""
    headers: tuple[tuple[str, str], ...]
    """Forwardable headers of the client; the upstream's own key is added by the adapter."""
    body: bytes | Body = b""
    as_it_is: bool = False
    """The answer is wanted in whatever encoding it comes; `headers` say which ones the client takes."""
    model: str = ""
    """What upstream calls the model; empty where the request names none."""


class UpstreamAnswer(Protocol):
    """An answer whose head has arrived. Must be closed; closing before the end stops upstream."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""

    async def read(self) -> bytes:
        """The rest of the body. Raises `UpstreamFailure`."""
        ...

    def arrived(self) -> bytes | None:
        """What `read` would return without waiting; None: more is to come, or the rest of it never will."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, unmerged. Raises `UpstreamFailure` when it breaks off."""
        ...

    def close(self) -> None:
        """Give the connection back when the body was read to its end, cut it otherwise. Idempotent."""
        ...


class Turn(Protocol):
    """The right to make one call upstream now."""

    def settle(self, tokens: int) -> None:
        """Tell what the call has used; does not wait. The second time, and for one nobody counts, it does nothing."""
        ...


class QueueWatch(Protocol):
    """Hears what becomes of those who wait in one queue. Never raises, never waits."""

    def waited(self, seconds: float) -> None:
        """One has waited for so long, whatever came of it."""
        ...

    def refused(self, reason: QueueRefusal) -> None:
        """One was not let in, or let go of unserved."""
        ...


class Upstream(Protocol):
    """An API we stand in front of, called under one key.

    Away: `UpstreamFailure`, for `pipeline/forward.py` to retry or to give up. An error answer is an answer, not an
    exception.
    """

    name: str
    identity: str
    """What tells its answers from another's: the base URL. Holds no secret."""

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        ...

    async def turn(
        self,
        team: str = "",
        weight: int = 1,
        tokens: int = 0,
        on_wait: Callable[[], None] = lambda: None,
        model: str = "",
    ) -> Turn:
        """Wait until a call of `model` that may use `tokens` can be made for `team`; nothing has been sent.

        `model` is what upstream calls it, empty where the request names none. Teams that wait are served by weight;
        `on_wait` is called when it begins to wait. Raises `Overloaded`, and `StoreAway` where the limiter's policy is
        `closed`.
        """
        ...

    async def send(self, request: UpstreamRequest) -> UpstreamAnswer:
        """Send once; returns when the head of an answer has come. Raises `UpstreamFailure`, and what a `Body` raises.

        A body that breaks off is never ended as if it were whole.
        """
        ...
