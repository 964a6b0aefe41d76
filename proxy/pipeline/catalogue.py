"""Upstream's models, asked for at most once a minute whatever the number of callers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from proxy.core.errors import UpstreamFailure, UpstreamFault, UpstreamKeyRefused
from proxy.pipeline.single_flight import SingleFlight
from proxy.pipeline.upstreams import Upstreams
from proxy.ports import Clock, Upstream, UpstreamRequest

__all__ = ["Catalogue", "Model"]

_KEPT_MS = 60_000
_GET_MODELS = UpstreamRequest("GET", "/models", (("Accept", "application/json"),))

Model = dict[str, Any]
"""A model object as upstream wrote it, unknown members included."""


class Catalogue:
    """The list as last seen."""

    __slots__ = ("_fetched_ms", "_fetches", "_models")

    def __init__(self) -> None:
        self._models: list[Model] = []
        self._fetched_ms: int | None = None
        self._fetches: SingleFlight[str, None] = SingleFlight()

    async def models(self, upstreams: Upstreams, clock: Clock, deadline_ms: int) -> list[Model]:
        """Return upstream's models. Raises `Overloaded`, `UpstreamFailure`, `UpstreamKeyRefused`; none is kept."""
        upstream = next(iter(upstreams)).keys[0].call
        now_ms = clock.monotonic_ns() // 1_000_000
        if self._fetched_ms is None or now_ms - self._fetched_ms >= _KEPT_MS:
            await self._fetches.join(upstream.name, lambda: self._renew(upstream, now_ms, deadline_ms))
        return self._models

    async def _renew(self, upstream: Upstream, now_ms: int, deadline_ms: int) -> None:
        try:
            async with asyncio.timeout(deadline_ms / 1_000):
                self._models = await _fetch(upstream)
        except TimeoutError:
            raise UpstreamFailure(upstream.name, UpstreamFault.TIMEOUT) from None
        self._fetched_ms = now_ms


async def _fetch(upstream: Upstream) -> list[Model]:
    await upstream.turn()
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
