"""The one frozen record of a finished request, for metrics and for the log."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proxy.core.event import Outcome
from proxy.core.usage import NO_USAGE, Usage

__all__ = ["CacheResult", "RequestRecord"]


class CacheResult(StrEnum):
    """What the cache had to say; also the label `result` of the metric."""

    HIT = "hit"
    MISS = "miss"
    COLLAPSED = "collapsed"
    """Answered with what another request fetched at the time, here or in another process."""
    BYPASS = "bypass"


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """Everything worth counting or logging of one request. Never a body, a header's value or a key."""

    request_id: str
    at_ms: int
    method: str
    endpoint: str
    """GenAI operation name, `models`, `me`, or `_other`."""
    status: int
    outcome: Outcome
    duration_ms: float
    overhead_ms: float
    """Part of the duration that was ours: not spent waiting for upstream."""
    upstream_ms: float = 0.0
    queued_ms: float = 0.0
    """Part of `overhead_ms`: spent waiting for a turn, under limits or the pace of an upstream."""
    ttft_ms: float | None = None
    """Time to the first byte of a streamed answer."""
    team: str = ""
    key_id: str = ""
    model: str = ""
    upstream: str = ""
    upstream_request_id: str = ""
    client_request_id: str = ""
    error_code: str = ""
    cache: CacheResult | None = None
    """None: the request never came to the cache."""
    cache_reason: str = ""
    """Why it was no hit: one of a fixed set of names."""
    attempts: int = 0
    tried: tuple[str, ...] = ()
    """Names of the upstreams that were called, one for each attempt."""
    usage: Usage = NO_USAGE
    cost_pico_usd: int = 0
    saved_pico_usd: int = 0
    estimated: bool = False
    unpriced: bool = False
    limited_scope: str = ""
    limited_dimension: str = ""
    shadow_limited: str = ""
    """Dimension in which the team's shadow tier would have refused it."""
    token_use_ratio: float | None = None
    """Used part of the team's token bucket after this request was admitted."""
    request_use_ratio: float | None = None
