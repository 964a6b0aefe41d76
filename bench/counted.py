"""The core steps that `count.py` counts the instructions of: the same input and the same state in every run."""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from conversation import ANSWER, MODEL, question
from multidict import CIMultiDict
from parts import Step, run

from proxy.adapters.logs import json_line
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.price_file import load_prices
from proxy.adapters.prometheus import Metrics
from proxy.adapters.spool import SpoolWriter
from proxy.core import bucket, fingerprint
from proxy.core.asked import Asked
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.estimate import estimate_input, estimate_output
from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.headers import forwardable, rate_limit_headers, returnable
from proxy.core.ids import uuid7
from proxy.core.kinds import KINDS
from proxy.core.pricing import cost_pico_usd, worst_case
from proxy.core.record import CacheResult, RequestRecord
from proxy.core.strict_json import parse_object
from proxy.core.tiers import LARGEST_LIMIT, Limits, Schedule
from proxy.core.usage import Usage

AT_MS = 1_728_000_005_000
TEAM, KEY_ID = "growth", "k7m2q9x4c1ab"
EVENT_ID = uuid7(AT_MS, bytes(range(10)))
USAGE = Usage(input_tokens=96, output_tokens=2)
LIMITS = Limits(LARGEST_LIMIT, LARGEST_LIMIT)
SCOPES = (Scope("team", Schedule(LIMITS, LIMITS)),)
CLIENT_HEADERS = CIMultiDict(
    {
        "Host": "127.0.0.1:8080",
        "User-Agent": "OpenAI/Python 2.7.1",
        "Accept": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "Connection": "keep-alive",
        "Content-Type": "application/json",
        "Content-Length": "450",
        "Authorization": "Bearer sk-tg_k7m2q9x4c1ab_0123456789abcdefghijklmnopqrstuv",
        "x-stainless-lang": "python",
        "x-stainless-retry-count": "0",
    }
)
UPSTREAM_HEADERS = CIMultiDict(
    {
        "Date": "Mon, 10 Mar 2025 01:25:52 GMT",
        "Content-Type": "application/json",
        "Content-Length": "650",
        "openai-processing-ms": "312",
        "openai-version": "2020-10-01",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-remaining-tokens": "149997",
        "set-cookie": "__cf_bm=none",
    }
)


class Standing:
    """A clock that stands."""

    def now_ms(self) -> int:
        """Always the same."""
        return AT_MS

    def monotonic_ns(self) -> int:
        """As above."""
        return 0


def decided(asking: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that waits for nothing returns."""
    try:
        asking.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("it waits")


def steps_in(directory: Path) -> dict[str, Step]:
    """Each step by its name; the spool is in `directory`."""
    return {**dict(deciding()), **dict(reading()), **dict(accounting(directory)), **dict(telling())}


def deciding() -> Iterator[tuple[str, Step]]:
    """Buckets and the limiter."""
    cost = Cost(1, 500)
    limiter = MemoryLimiter(Standing())

    def reserve() -> Admitted:
        admitted = decided(limiter.reserve(TEAM, SCOPES, cost))
        if not isinstance(admitted, Admitted):
            raise TypeError(f"{admitted} is no admission")
        return admitted

    def reserve_and_settle() -> None:
        limiter.settle(reserve().reservation, actual)

    first = reserve()
    schedule, handle = SCOPES[0].schedule, first.reservation.handles[0]
    actual = Cost(1, 98)
    yield "bucket: reserve", lambda: bucket.reserve([None], SCOPES, cost, AT_MS, 0)
    yield "bucket: settle", lambda: bucket.settle(None, schedule, handle, cost, actual, AT_MS, 0)
    yield "limiter in memory: reserve and settle", reserve_and_settle
    yield "headers: limits", lambda: rate_limit_headers(first.standing)


def asked() -> Asked:
    """What the question asks."""
    raw = question(0)
    return KINDS["chat"].parse(parse_object(raw, 64), raw)


def reading() -> Iterator[tuple[str, Step]]:
    """What is read of a request and of its answer."""
    raw, wanted, chat = question(0), asked(), KINDS["chat"]
    secret = bytes(range(32))
    going = forwardable(CLIENT_HEADERS.items())

    def digest() -> bytes:
        return fingerprint.digest(
            secret,
            salt=b"",
            method="POST",
            path="/chat/completions?",
            upstream="https://api.openai.com/v1",
            headers=going,
            body=wanted.body,
        )

    yield "JSON: strict parse", lambda: parse_object(raw, 64)
    yield "chat: checks", lambda: chat.parse(wanted.body, raw)
    yield "digest", digest
    yield "estimate", lambda: (estimate_input(wanted), estimate_output(wanted, 1_024, None))
    yield "determinism", lambda: chat.nondeterminism(wanted.body)
    yield "usage of an answer", lambda: chat.read(ANSWER)
    yield "headers: to upstream", lambda: forwardable(CLIENT_HEADERS.items())
    yield "headers: from upstream", lambda: returnable(UPSTREAM_HEADERS.items(), error=False)
    yield "id of an event", lambda: uuid7(AT_MS, b"0123456789")


def accounting(directory: Path) -> Iterator[tuple[str, Step]]:
    """Prices, and what is written down."""
    prices = load_prices(None)
    price = prices.price(MODEL, AT_MS)
    if price is None:
        raise LookupError(MODEL)
    writer = SpoolWriter(directory, quota_bytes=1 << 30)

    def dispatch() -> Dispatch:
        return Dispatch(
            event_id=EVENT_ID,
            at_ms=AT_MS,
            request_id="req_0",
            team=TEAM,
            key_id=KEY_ID,
            endpoint="chat",
            model=MODEL,
            upstream="openai",
            reserved_input_tokens=110,
            reserved_output_tokens=1_024,
            price_id=price.price_id,
        )

    def event() -> UsageEvent:
        return UsageEvent(
            event_id=EVENT_ID,
            at_ms=AT_MS,
            request_id="req_0",
            team=TEAM,
            key_id=KEY_ID,
            endpoint="chat",
            model=MODEL,
            upstream="openai",
            status=200,
            outcome=Outcome.OK,
            usage=USAGE,
            cost_pico_usd=15_600_000,
            price_id=price.price_id,
            duration_ms=312,
        )

    yield "price: look up", lambda: prices.price(MODEL, AT_MS)
    yield "price: cost of an answer", lambda: cost_pico_usd(price, USAGE, None)
    yield "price: worst case", lambda: worst_case(price, 110, 1_024, None)
    yield "spool: begin", lambda: writer.begin(dispatch())
    yield "spool: end", lambda: writer.end(event())


def telling() -> Iterator[tuple[str, Step]]:
    """Metrics and the log."""
    metrics = Metrics({MODEL}.__contains__)
    metrics.prepare([TEAM])

    def record() -> RequestRecord:
        return RequestRecord(
            request_id="req_0",
            at_ms=AT_MS,
            method="POST",
            endpoint="chat",
            status=200,
            outcome=Outcome.OK,
            duration_ms=312.5,
            overhead_ms=0.4,
            upstream_ms=312.1,
            team=TEAM,
            key_id=KEY_ID,
            model=MODEL,
            upstream="openai",
            upstream_request_id="req_5b1f2b0c8e4d4d1a",
            cache=CacheResult.MISS,
            cache_reason="uri-miss",
            attempts=1,
            tried=("openai",),
            usage=USAGE,
            cost_pico_usd=15_600_000,
            request_use_ratio=0.25,
            token_use_ratio=0.125,
        )

    finished = record()
    yield "record of a request", record
    yield "metrics: finished", lambda: metrics.finished(finished)
    yield "log line", lambda: json_line(finished)


def main() -> None:
    """Run the steps."""
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-") as directory:
        run(steps_in(Path(directory)))


if __name__ == "__main__":
    main()
