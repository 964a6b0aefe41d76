"""The line of a request on a stage: real limiter, cache and flights; upstream, clients and time are a script's.

Time is the loop's own, so that under `async_solipsism` hours pass at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import async_solipsism
from multidict import CIMultiDict

from proxy.adapters.memory.cache import MemoryCache
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.price_file import load_prices
from proxy.core.bucket import Scope
from proxy.core.errors import InvalidKey, TollgateError
from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.core.principal import KeyRecord, Principal, Team
from proxy.core.record import RequestRecord
from proxy.core.retry import RetryPolicy
from proxy.core.tiers import Limits, Phase, Schedule, Tier
from proxy.pipeline.catalogue import Catalogue
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.flights import Flights
from proxy.pipeline.line import travel
from proxy.pipeline.report import Ending, report
from proxy.pipeline.services import Policy, Services
from proxy.pipeline.upstreams import Upstreams
from proxy.ports import CacheAddress, CachedAnswer, Turn, UpstreamRequest
from proxy.web.errors import answer_of, status_of
from tests.support.tasks import Tasks

__all__ = ["CAPACITY", "Asked", "Client", "LeasedCache", "Play", "Stage", "chat", "on_stage", "plain", "stream"]

CAPACITY = 1_000_000
NOW_MS = 1_800_000_000_000
PRICES = load_prices(None)
# Buckets that hold much and refill by one a minute: what they lack is what was taken.
ROOMY = Limits(requests_per_minute=1, tokens_per_minute=1, request_capacity=CAPACITY, token_capacity=CAPACITY)
Step = bytes | float | asyncio.Event | Exception
"""Of an answer: bytes that come, seconds that pass, a signal that is waited for, an error."""


def on_stage(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end in virtual time, within an hour of it."""

    async def bounded() -> None:
        async with asyncio.timeout(3_600):
            await play()

    with asyncio.Runner(loop_factory=async_solipsism.EventLoop) as runner:
        runner.run(bounded())


def chat(**changes: object) -> dict[str, Any]:
    """A request whose answer may be kept."""
    return {"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": "How deep?"}], **changes}


def plain(content: str = "deep", *, reason: str = "stop", tokens: int = 5) -> bytes:
    """An answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini"}
    return json.dumps({**head, "choices": [choice], "usage": usage}).encode()


def stream(*words: str, reason: str = "stop", tokens: int = 5) -> list[bytes]:
    """The events of an answer, with usage as upstream is asked for it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}

    def event(choices: list[object], usage: object = None) -> bytes:
        return b"data: " + json.dumps({**head, "choices": choices, "usage": usage}).encode() + b"\n\n"

    def choice(delta: dict[str, str], finish: str | None = None) -> list[object]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    texts = [event(choice({"content": word})) for word in words]
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    ends = [event(choice({}, reason)), event([], usage), b"data: [DONE]\n\n"]
    return [event(choice({"role": "assistant", "content": ""})), *texts, *ends]


@dataclass
class Play:
    """One answer of upstream, as it comes."""

    steps: Sequence[Step]
    status: int = 200
    kind: str = "application/json"
    before: Sequence[Step] = ()
    """Before the head."""


@dataclass
class _Answer:
    play: Play
    house: Upstream
    status: int = field(init=False)
    headers: CIMultiDict[str] = field(init=False)
    ended: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self.status = self.play.status
        self.headers = CIMultiDict({"Content-Type": self.play.kind, "x-request-id": f"up-{len(self.house.requests)}"})

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    def arrived(self) -> None:
        """All of it is still to come."""

    async def chunks(self):
        async for piece in performed(self.play.steps):
            yield piece
        self.ended = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.house.running -= 1
            self.house.cut += not self.ended


async def performed(steps: Sequence[Step]):
    for step in steps:
        match step:
            case bytes():
                yield step
            case asyncio.Event():
                await step.wait()
            case Exception():
                raise step
            case _:
                await asyncio.sleep(step)


class _Counted:
    """A turn, and with how many tokens it was settled each time it was."""

    def __init__(self) -> None:
        self.settled: list[int] = []

    def settle(self, tokens: int) -> None:
        self.settled.append(tokens)


class Upstream:
    """Gives its plays in order, the last one over and over; a function is told whether a stream is asked for."""

    name, identity, waiting = "stage", "http://stage/v1", 0

    def __init__(self, plays: Sequence[Play | Callable[[bool], Play]]) -> None:
        self.plays = list(plays)
        self.requests: list[UpstreamRequest] = []
        self.running = 0
        self.cut = 0
        """Answers that were let go of before their end."""
        self.turn_seconds = 0.0
        self.turns: list[_Counted] = []

    async def turn(self, *_: object) -> Turn:
        """Wait as long as each does, and count it."""
        if self.turn_seconds:
            await asyncio.sleep(self.turn_seconds)
        turn = _Counted()
        self.turns.append(turn)
        return turn

    async def send(self, request: UpstreamRequest) -> _Answer:
        play = self.plays[min(len(self.requests), len(self.plays) - 1)]
        if not isinstance(play, Play):
            play = play(bool(json.loads(request.body).get("stream")))
        self.requests.append(request)
        self.running += 1
        try:
            async for _ in performed(play.before):
                pass
        except BaseException:
            self.running -= 1
            self.cut += 1
            raise
        return _Answer(play, self)


class Client:
    """A client that reads at its own pace; `gate` holds it before each read until it is set."""

    def __init__(self, body: dict[str, Any], *, pace_seconds: float = 0, gate: asyncio.Event | None = None) -> None:
        self.body = json.dumps(body).encode()
        self.pace_seconds = pace_seconds
        self.gate = gate
        self.head: tuple[int, dict[str, str]] | None = None
        self.pieces: list[bytes] = []
        self.closed = False
        self.aborted = False

    @property
    def text(self) -> bytes:
        return b"".join(self.pieces)

    async def receive(self) -> bytes:
        return self.body

    async def open(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        assert self.head is None
        assert len({name.lower() for name, _ in headers}) == len(headers), "no header twice"
        self.head = (status, dict(headers))

    async def write(self, data: bytes) -> None:
        assert self.head is not None
        assert not self.closed
        assert not self.aborted
        if self.gate is not None:
            await self.gate.wait()
        if self.pace_seconds:
            await asyncio.sleep(self.pace_seconds)
        self.pieces.append(data)

    async def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


@dataclass
class Asked:
    """A request, and what became of it."""

    client: Client
    exchange: Exchange
    task: asyncio.Task[Reply | None]

    @property
    def status(self) -> int:
        return self.task.result().status

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer, however it was given."""
        if self.client.head is not None:
            return self.client.head[1]
        headers = self.task.result().headers
        assert len({name.lower() for name, _ in headers}) == len(headers), "no header twice"
        return dict(headers)

    @property
    def body(self) -> bytes:
        return self.client.text if self.client.head is not None else self.task.result().body

    async def leave(self) -> None:
        """As when its connection breaks: the task is cancelled, and gets to say its last words."""
        self.task.cancel()
        await asyncio.wait([self.task])


class Books:
    """`ports.Ledger` and `ports.Telemetry`: everything that was written."""

    def __init__(self) -> None:
        self.begun: list[Dispatch] = []
        self.ended: list[UsageEvent] = []
        self.records: list[RequestRecord] = []
        self.in_flight = 0

    def begin(self, dispatch: Dispatch) -> None:
        self.begun.append(dispatch)

    def end(self, event: UsageEvent) -> None:
        self.ended.append(event)

    def started(self) -> None:
        self.in_flight += 1

    def finished(self, record: RequestRecord) -> None:
        self.in_flight -= 1
        self.records.append(record)

    def retried(self, upstream: str, reason: str) -> None: ...

    def upstream_failed(self, upstream: str, kind: str) -> None: ...

    def retry_refused(self, upstream: str) -> None: ...

    def key_refused(self, upstream: str, key: int, reason: str) -> None: ...

    def upstream_remaining(self, upstream: str, key: int, dimension: str, remaining: int) -> None: ...

    def store_failed(self, store: str, operation: str) -> None: ...


class LoopClock:
    def now_ms(self) -> int:
        return NOW_MS + int(asyncio.get_running_loop().time() * 1_000)

    def monotonic_ns(self) -> int:
        return int(asyncio.get_running_loop().time() * 1e9)


class SlowLimiter(MemoryLimiter):
    """One that takes its time, as one across a network does."""

    reserve_seconds = 0.0

    async def reserve(self, team, scopes, cost, spend=None):
        if self.reserve_seconds:
            await asyncio.sleep(self.reserve_seconds)
        return await super().reserve(team, scopes, cost, spend)


class Doorman:
    """Knows keys by name: `team` or `team/key`."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}

    def admit(self, name: str, *, limits: Limits | None = None, key_limits: Limits | None = None, **more: Any) -> None:
        team_name = name.partition("/")[0]
        team = Team(team_name, "roomy", 0, limits, cache_secret=team_name.encode() * 16, **more)
        key = KeyRecord(name, team_name, name, 0, None, None, None, (), limits=key_limits)
        self.principals[name] = Principal(team, key)

    async def of(self, key: str) -> Principal:
        if key not in self.principals:
            raise InvalidKey
        return self.principals[key]


class Stage:
    """One process. Several may share a `cache`, a `limiter` and an `upstream`."""

    def __init__(
        self,
        *plays: Play | Callable[[bool], Play],
        cache: Any = None,
        limiter: SlowLimiter | None = None,
        upstream: Upstream | None = None,
        **policy: Any,
    ) -> None:
        self.clock = LoopClock()
        self.books = Books()
        self.tasks = Tasks()
        self.doorman = Doorman()
        self.doorman.admit("growth")
        self.upstream = upstream if upstream is not None else Upstream(plays)
        self.limiter = limiter if limiter is not None else SlowLimiter(self.clock)
        self.cache = cache if cache is not None else MemoryCache(self.clock, max_bytes=100_000_000)
        tier = Tier("roomy", (Phase(ROOMY),))
        self.services = Services(
            policy=Policy(tiers={"roomy": tier}, default_tier="roomy", retry=RetryPolicy(max_attempts=1), **policy),
            clock=self.clock,
            principals=self.doorman,
            prices=PRICES,
            limiter=self.limiter,
            cache=self.cache,
            ledger=self.books,
            upstreams=Upstreams.single(self.upstream),
            telemetry=self.books,
            catalogue=Catalogue(),
            flights=Flights(),
            spawn=self.tasks,
            status_of=status_of,
        )
        self.asked: list[Asked] = []

    def ask(
        self, body: dict[str, Any] | None = None, *, by: str = "growth", headers: dict[str, str] | None = None,
        **client: Any,
    ) -> Asked:  # fmt: skip
        """Let a client ask; it goes on beside the play."""
        who = Client(chat() if body is None else body, **client)
        now_ms = self.clock.now_ms()
        event_id = uuid7(now_ms, len(self.asked).to_bytes(10, "big"))
        exchange = Exchange(
            event_id=event_id,
            request_id=f"req_{len(self.asked)}",
            client_request_id="",
            at_ms=now_ms,
            started_ns=self.clock.monotonic_ns(),
            method="POST",
            path="/chat/completions",
            query="",
            endpoint="chat",
            headers=CIMultiDict({"Authorization": f"Bearer {by}", **(headers or {})}),
        )
        task = asyncio.get_running_loop().create_task(self._serve(exchange, who))
        asked = Asked(who, exchange, task)
        self.asked.append(asked)
        return asked

    async def _serve(self, exchange: Exchange, client: Client) -> Reply | None:
        """As the public listener does."""
        self.books.started()
        ending = Ending(499, Outcome.CLIENT_GONE)
        try:
            reply = await travel(exchange, client, self.services)
            ending = Ending(reply.status)
        except ConnectionResetError:
            reply = Reply(499)
        except TollgateError as error:
            answer = answer_of(error)
            ending = Ending(answer.status, answer.outcome, answer.code or "", error)
            reply = Reply(answer.status, answer.headers, answer.message.encode())
            if client.head is not None:
                client.abort()
        finally:
            if not exchange.outlives:
                report(exchange, ending, self.services)
        return reply

    async def all(self) -> list[Asked]:
        """Wait until everybody has an answer or has left, and no task is left behind."""
        await asyncio.wait([asked.task for asked in self.asked])
        await self.tasks.finished(seconds=600)
        return self.asked

    async def charged(self, team: str = "growth") -> tuple[int, int]:
        """Requests and tokens that the team's bucket lacks."""
        (standing,) = await self.limiter.peek(team, [Scope("team", Schedule(ROOMY, ROOMY))])
        return CAPACITY - standing.requests.remaining, CAPACITY - standing.tokens.remaining

    def ties_out(self) -> None:
        """What holds at the end of every play."""
        books, upstream = self.books, self.upstream
        assert len(self.services.flights) == 0
        assert books.in_flight == 0
        assert sorted(record.request_id for record in books.records) == sorted(
            asked.exchange.request_id for asked in self.asked
        ), "every request is counted once"
        dispatched = [dispatch.event_id for dispatch in books.begun]
        events = [event.event_id for event in books.ended]
        assert len(set(events)) == len(events)
        assert set(dispatched) <= set(events)
        others = [event for event in books.ended if event.event_id not in set(dispatched)]
        assert {event.outcome for event in others} <= {Outcome.CACHED}
        assert all(event.cost_pico_usd == 0 for event in others)
        assert sum(event.attempts for event in books.ended) == len(upstream.requests)
        assert upstream.running == 0
        assert all(len(turn.settled) == 1 for turn in upstream.turns), "no turn is kept, nor settled twice"
        assert self.limiter._in_flight == {} or set(self.limiter._in_flight.values()) == {0}, "every place is free"


class LeasedCache(MemoryCache):
    """What several processes share: one of them at a time has the right to fill an address."""

    def __init__(self) -> None:
        super().__init__(LoopClock(), max_bytes=100_000_000)
        self.held: dict[CacheAddress, asyncio.Event] = {}
        self.waits: list[float] = []

    async def claim(self, address: CacheAddress) -> Any:
        await asyncio.sleep(0.001)
        if address in self.held:
            return None
        self.held[address] = asyncio.Event()
        return _Lease(self, address)

    async def filled(self, address: CacheAddress, timeout_seconds: float) -> None:
        self.waits.append(timeout_seconds)
        ended = self.held.get(address)
        if ended is not None:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await ended.wait()
            except TimeoutError:
                pass


class _Lease:
    def __init__(self, cache: LeasedCache, address: CacheAddress) -> None:
        self.cache: LeasedCache | None = cache
        self.address = address

    async def store(self, answer: CachedAnswer) -> bool:
        cache = self.cache
        if cache is None:
            return False
        try:
            await asyncio.sleep(0.001)
            return cache.keep(self.address, answer)
        finally:
            await self.release()

    async def release(self) -> None:
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.held.pop(self.address).set()
