"""The record that travels: one request, and what each step found out about it."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from proxy.core.answer import AnswerStream
from proxy.core.asked import Asked
from proxy.core.bucket import Admitted, NeverFits, Refused
from proxy.core.cache_control import NO_WISHES, CacheWishes
from proxy.core.discreet import Discreet
from proxy.core.event import Outcome
from proxy.core.headers import forwardable
from proxy.core.kinds import KINDS, PASSED, Kind
from proxy.core.pricing import Price
from proxy.core.principal import Principal
from proxy.core.record import CacheResult
from proxy.core.usage import NO_USAGE, Usage
from proxy.pipeline.recent import Understood
from proxy.pipeline.upstreams import Site
from proxy.ports import Body, CacheAddress, CachedAnswer, Fill, Turn

__all__ = ["Exchange", "Reply", "Shadow"]


class Reply(Discreet, frozen=True, gc=False):
    """An answer to the client, whole; with a `body` of None it was streamed, and has been written already."""

    hidden = frozenset({"body"})

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = b""
    error_code: str = ""
    """What it is counted and logged as where it tells people of an error; others are raised."""


class Shadow(msgspec.Struct, frozen=True, gc=False):
    """What the tier a team is tried on would have said."""

    tier: str
    decision: Admitted | Refused | NeverFits


@dataclass(slots=True)
class Exchange:
    """One request from its arrival to its settlement.

    A step writes its own fields and reads those before it; `principal`, `asked` and `admitted` are unset until their
    step has run.
    """

    # As it came.
    event_id: str
    request_id: str
    client_request_id: str
    at_ms: int
    started_ns: int
    method: str
    path: str
    """Below the version: `/chat/completions`."""
    query: str
    """As received, without the question mark."""
    endpoint: str
    headers: Mapping[str, str] = field(repr=False)
    """Case-insensitive."""
    deployment: str = ""
    """The model that the path names, as those of Azure's SDKs do; empty: none."""
    secure: bool = False
    """Whether it came to us by TLS."""

    # authenticate
    principal: Principal = field(init=False, repr=False)
    # interpret
    asked: Asked = field(init=False, repr=False)
    _onward: tuple[tuple[str, str], ...] | None = field(default=None, init=False, repr=False)
    understood: Understood | None = field(default=None, repr=False)
    """The same as it is remembered; None of a form."""
    named: str = ""
    """What the client calls the model: that, or an alias of it."""
    prompt_tokens: int | None = None
    """The estimate of its prompt, where it was made already."""
    price: Price | None = None
    body: Callable[[str], Body] | None = field(default=None, repr=False)
    """What goes upstream where that is not `asked.raw`, told what upstream calls the model."""
    let_go: Callable[[], None] | None = field(default=None, repr=False)
    """Forgets what `body` reads, once there is no call left to make."""
    as_it_is: bool = False
    """It passes in both directions as it comes, in whatever encoding, for as long as it takes."""
    # look up
    cache: CacheResult | None = None
    cache_reason: str = ""
    """Why it is no hit: one of a set that does not grow, for header and metric."""
    wishes: CacheWishes = NO_WISHES
    address: CacheAddress | None = None
    """Where in the cache the answer is, or is to be."""
    hit: CachedAnswer | None = None
    """In the form that is asked for."""
    # coalesce
    shared: bool = False
    """Several may listen to its answer: each of them adds the headers that are its own."""
    collapsed: bool = False
    """It is answered with what another request is, and costs what a hit costs."""
    disappointed: bool = False
    """It followed another, which brought no answer for it."""
    outlives: bool = False
    """Its client has left and its call goes on: who settles it reports it."""
    drained: bool = False
    """Nobody listens any more, and its answer is read to the end for the account and the cache."""
    fill: Fill | None = None
    """The right to keep its answer."""
    kept: CachedAnswer | None = None
    """The answer as it is kept, or would be were there a right to."""
    stored: bool = False
    # admit
    admitted: Admitted = field(init=False, repr=False)
    reserved_input_tokens: int = 0
    reserved_output_tokens: int = 0
    # decide shadow
    shadow: Shadow | None = None
    # dispatch
    route: tuple[Site, ...] = field(default=(), repr=False)
    """Who is asked, in this order."""
    # forward
    upstream: str = ""
    """Name of the one that was asked last."""
    upstream_request_id: str = ""
    attempts: int = 0
    tried: list[str] = field(default_factory=list)
    """Names of the upstreams that were called, one for each attempt."""
    running: bool = False
    """Upstream is at work on it, or may have been, and has not said what that used."""
    upstream_ns: int = 0
    """Time spent waiting for upstream."""
    turn: Turn | None = None
    """The right to make the latest call, until the exchange is settled."""
    on_wait: Callable[[], None] = field(default=lambda: None, repr=False)
    """Is called when it begins to wait for limits to have room."""
    queued_ns: int = 0
    """Time spent waiting for a turn, under limits or the pace of an upstream."""
    # relay
    stream: AnswerStream | None = None
    """What a streamed answer has said so far."""
    between_events: Callable[[], bool] | None = None
    """Whether more of a stream is to come, and all that has come is whole events; where silent ones are kept alive."""
    error_event: Callable[[str, str], bytes] | None = field(default=None, repr=False)
    """The event that tells of an error, message and code, in a stream that has begun; empty behind its last."""
    first_byte_ns: int | None = None
    # settle
    dispatched: bool = False
    settled: bool = False
    status: int = 0
    outcome: Outcome = Outcome.FAILED
    usage: Usage = NO_USAGE
    estimated: bool = False
    counting: Future[None] | None = None
    """Done when its tokens are counted and its event is written; None: they were at once."""
    cost_pico_usd: int = 0
    saved_pico_usd: int = 0

    @property
    def onward(self) -> tuple[tuple[str, str], ...]:
        """The client's headers that go upstream."""
        if self._onward is None:
            self._onward = forwardable(self.headers.items())
        return self._onward

    @property
    def may_use_model(self) -> bool:
        """Whether team and key are open to the model that is asked, by either of its names."""
        return self.principal.may_use_any({self.asked.model, self.named or self.asked.model})

    @property
    def came_by_tls(self) -> bool:
        """Whether the client's connection is encrypted, as far as we and what stands before us can say."""
        return self.secure or self.headers.get("X-Forwarded-Proto", "").lower() == "https"

    @property
    def kind(self) -> Kind:
        """How requests to its endpoint are read and answered; only of a metered one, and of what is passed on."""
        return PASSED if self.as_it_is else KINDS[self.endpoint]
