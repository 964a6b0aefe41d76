"""Upstreams' models, each of them asked for its own at most once a minute whatever the number of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.core.errors import TollgateError, UpstreamFailure, UpstreamFault, UpstreamKeyRefused
from proxy.pipeline.single_flight import SingleFlight
from proxy.pipeline.upstreams import Site, Upstreams, nobody_answers
from proxy.ports import Clock, Upstream, UpstreamRequest

__all__ = ["Catalogue", "Model"]

_KEPT_MS = 60_000
_LONGEST_MS = 10_000
"""A list is short: who has not told it by then would keep waiting those whom the others would do."""
_GET_MODELS = UpstreamRequest("GET", "/models", (("Accept", "application/json"),))

Model = dict[str, Any]
"""A model object as upstream wrote it, unknown members included."""


@dataclass(slots=True)
class _Shelf:
    models: list[Model] = field(default_factory=list)
    fetched_ms: int | None = None


class Catalogue:
    """The lists as last seen. An upstream with a map of models is not asked: it serves what the map names."""

    __slots__ = ("_fetches", "_shelves")

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self._fetches: SingleFlight[str, None] = SingleFlight()

    async def models(
        self, upstreams: Upstreams, clock: Clock, deadline_ms: int, on_failed: Callable[[str, str], None]
    ) -> list[Model]:
        """Return the models of all upstreams, each once, as the first of them tells of it.

        An upstream that cannot be asked has none for the moment, and `on_failed` is told its name and what is wrong;
        one that rests after a run of failures is not asked.
        Raises `Overloaded`, `UpstreamFailure`, `UpstreamKeyRefused` where nobody can be asked; none is kept.
        """
        found: dict[object, Model] = {}
        error: TollgateError | None = None
        asked = await asyncio.gather(
            *(self._of(site, clock, deadline_ms, on_failed) for site in upstreams), return_exceptions=True
        )
        for came in asked:
            if isinstance(came, TollgateError):
                error = error or came
            elif isinstance(came, BaseException):
                raise came
            else:
                for model in came:
                    found.setdefault(model.get("id"), model)
        if error is not None and all(isinstance(came, TollgateError) for came in asked):
            raise error
        return list(found.values())

    async def _of(
        self, site: Site, clock: Clock, deadline_ms: int, on_failed: Callable[[str, str], None]
    ) -> list[Model]:
        if site.candidate.models is not None:
            return [_described(model) for model in site.candidate.models]
        now_ms = clock.monotonic_ns() // 1_000_000
        shelf = self._shelves.setdefault(site.name, _Shelf())
        if shelf.fetched_ms is None or now_ms - shelf.fetched_ms >= _KEPT_MS:
            if not site.breaker.would_admit(now_ms):
                raise nobody_answers((site,), now_ms)
            try:
                await self._fetches.join(site.name, lambda: _renew(shelf, site, now_ms, min(deadline_ms, _LONGEST_MS)))
            except UpstreamFailure as failure:
                on_failed(failure.upstream, failure.fault)
                raise
        return shelf.models


def _described(model: str) -> Model:
    """A model as OpenAI would list it, for an upstream that has no such list."""
    return {"id": model, "object": "model", "created": 0, "owned_by": "system"}


async def _renew(shelf: _Shelf, site: Site, now_ms: int, deadline_ms: int) -> None:
    upstream = (site.key(now_ms) or site.soonest()).call
    try:
        async with asyncio.timeout(deadline_ms / 1_000):
            shelf.models = await _fetch(upstream)
    except TimeoutError:
        raise UpstreamFailure(upstream.name, UpstreamFault.TIMEOUT) from None
    shelf.fetched_ms = now_ms


async def _fetch(upstream: Upstream) -> list[Model]:
    (await upstream.turn()).settle(0)
    answer = await upstream.send(_GET_MODELS)
    try:
        body = await answer.read()
    finally:
        answer.close()
    if answer.status == 401:
        raise UpstreamKeyRefused(upstream.name)
    try:
        data = msgspec.json.decode(body)["data"] if answer.status == 200 else None
    except (msgspec.MsgspecError, KeyError, TypeError):
        data = None
    if not isinstance(data, list):
        raise UpstreamFailure(upstream.name, UpstreamFault.CONTENT)
    return [model for model in data if isinstance(model, dict)]
