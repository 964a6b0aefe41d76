"""Requests that have come as far as a step of the line, for it to be measured by itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from aiohttp import web
from conversation import ANSWER, question, respelled
from inside import Gateway

from proxy.core.errors import TollgateError
from proxy.core.event import Outcome
from proxy.pipeline.admit import admit
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.forward import dispatch, forward
from proxy.pipeline.interpret import interpret
from proxy.pipeline.lookup import look_up
from proxy.pipeline.report import Ending, record_of
from proxy.pipeline.settle import settle, settle_hit
from proxy.web.paths import place_of

__all__ = ["AGAIN", "AT_A_TIME", "HIT", "NARROW", "NEW", "Line", "body_of", "refusal"]

AT_A_TIME = 64
"""Requests in a round: few enough that none of them grows old before its step."""
PATH = "/v1/chat/completions"
HIT = 0
"""The number of the question whose answer is in the cache."""
NEW, AGAIN, NARROW = -1, -2, -3
"""Stand for questions that nobody has asked yet, for that of `HIT` in other bytes each time, and for new ones of a team
that is at its limit."""
_numbers = count(1)


def body_of(number: int) -> bytes:
    """The question of a number, or one that it stands for."""
    if number == AGAIN:
        return respelled(question(HIT), next(_numbers))
    if number == NARROW:
        return question(HIT)  # whoever is refused asks the same again
    return question(number if number >= 0 else next(_numbers))


class Line:
    """Requests that have come so far along the line."""

    def __init__(self, made: Gateway, request: web.BaseRequest, narrow: web.BaseRequest) -> None:
        self.made = made
        self.services = made.services
        self.request, self.narrow = request, narrow
        place = place_of(PATH)
        if place is None:
            raise LookupError(PATH)
        self.place = place
        self._let_pass, self._began = 0, time.monotonic()

    def let_pass(self) -> None:
        """Of a team that is at its limit one request is let pass each minute; more are a failure."""
        self._let_pass += 1
        if self._let_pass > 1 + (time.monotonic() - self._began) / 60:
            raise SystemExit("a team that is at its limit was let pass")

    def arrive(self, request: web.BaseRequest) -> Exchange:
        """What the public listener makes of a request."""
        return self.made.routes._exchange(request, self.place, "chat")  # noqa: SLF001 - a step of its own

    async def arrived(self) -> list[Exchange]:
        """As they come."""
        return [self.arrive(self.request) for _ in range(AT_A_TIME)]

    async def known(self, number: int = NEW) -> list[Any]:
        """Authenticated, with the body each of them asks with."""
        pairs = []
        for _ in range(AT_A_TIME):
            exchange = self.arrive(self.narrow if number == NARROW else self.request)
            await authenticate(exchange, self.services)
            pairs.append((exchange, body_of(number)))
        return pairs

    async def understood(self, number: int = NEW) -> list[Exchange]:
        """Interpreted."""
        pairs = await self.known(number)
        for exchange, body in pairs:
            await interpret(exchange, body, self.services)
        return [exchange for exchange, _ in pairs]

    async def looked_up(self, number: int = NEW) -> list[Exchange]:
        """Looked up."""
        return await self.each(look_up, await self.understood(number))

    async def admitted(self, number: int = NEW) -> list[Exchange]:
        """Admitted."""
        return await self.each(admit, await self.looked_up(number))

    async def dispatched(self) -> list[Exchange]:
        """With their begin record."""
        exchanges = await self.admitted()
        for exchange in exchanges:
            dispatch(exchange, self.services)
        return exchanges

    async def answered(self) -> list[Exchange]:
        """With an answer of upstream's."""
        exchanges = await self.dispatched()
        for exchange in exchanges:
            await (await forward(exchange, self.services)).read()
        return exchanges

    async def settled(self) -> list[Exchange]:
        """Settled."""
        exchanges = await self.answered()
        for exchange in exchanges:
            self.settle(exchange)
        return exchanges

    async def kept_for(self) -> list[Exchange]:
        """Settled, with the right to keep their answers."""
        exchanges = await self.settled()
        for exchange in exchanges:
            if exchange.address is not None:
                exchange.fill = await self.services.cache.claim(exchange.address)
        return exchanges

    async def hits(self) -> list[Exchange]:
        """Hits, settled."""
        exchanges = await self.admitted(HIT)
        for exchange in exchanges:
            settle_hit(exchange, self.services)
        return exchanges

    async def refused(self) -> list[Any]:
        """Refused, with why."""
        return [(each, await refusal(self, each)) for each in await self.looked_up(NARROW)]

    async def records(self) -> list[Any]:
        """What is counted and logged of them."""
        return [record_of(each, Ending(200), self.services) for each in await self.settled()]

    async def each(self, step: Callable[..., Awaitable[None]], exchanges: list[Exchange]) -> list[Exchange]:
        """Let all of them take one step."""
        for exchange in exchanges:
            await step(exchange, self.services)
        return exchanges

    def settle(self, exchange: Exchange) -> None:
        """Read the answer's usage, and settle with it."""
        completion = exchange.kind.read(ANSWER)
        tier = completion.service_tier
        settle(exchange, self.services, status=200, outcome=Outcome.OK, usage=completion.usage, service_tier=tier)


async def refusal(line: Line, exchange: Exchange) -> TollgateError:
    """Why it is not admitted."""
    while True:
        try:
            await admit(exchange, line.services)
        except TollgateError as error:
            return error
        line.let_pass()
