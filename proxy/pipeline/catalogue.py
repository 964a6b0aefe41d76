"""Upstream's models, asked for at most once a minute whatever the number of callers."""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.core.errors import UpstreamFailure, UpstreamFault, UpstreamKeyRefused
from proxy.ports import Clock, Upstream, UpstreamRequest

__all__ = ["Catalogue", "Model"]

_KEPT_MS = 60_000
_GET_MODELS = UpstreamRequest("GET", "/models", (("Accept", "application/json"),))

Model = dict[str, Any]
"""A model object as upstream wrote it, unknown members included."""


class Catalogue:
    """The list as last seen."""

    __slots__ = ("_fetched_ms", "_models")

    def __init__(self) -> None:
        self._models: list[Model] = []
        self._fetched_ms: int | None = None

    async def models(self, upstream: Upstream, clock: Clock) -> list[Model]:
        """Return upstream's models. Raises `UpstreamFailure`, `UpstreamKeyRefused`; a failure is not kept."""
        now_ms = clock.monotonic_ns() // 1_000_000
        if self._fetched_ms is None or now_ms - self._fetched_ms >= _KEPT_MS:
            self._models = await _fetch(upstream)
            self._fetched_ms = now_ms
        return self._models


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
