"""How a simulated upstream behaves, for all of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.simulator.faults import Faults

__all__ = ["Behaviour"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Speed, length of answers, limits and error rate of a simulated upstream.

    A plain answer takes as long as a complete reading of its stream: all three times count. Raises `ValueError` for a
    value out of range.
    """

    latency_ms: float = 0.0
    """Before the head of any answer."""
    ttft_ms: float = 0.0
    """From the head to the first chunk."""
    chunk_ms: float = 0.0
    """Between two pieces of text."""
    tokens: int = 16
    """Length of an answer, in pieces of text, before `max_tokens` cuts it."""
    error_rate: float = 0.0
    """Share of requests that fail with `error_status`, 0..1; which ones follows from `seed` alone."""
    error_status: int = 500
    seed: int = 0
    """Another seed gives other texts, ids and failures."""
    requests_per_minute: int | None = None
    """Limits of its own, per model; None: no limit."""
    tokens_per_minute: int | None = None
    api_key: str | None = field(default=None, repr=False)
    """The bearer token it takes; None: any that is not empty."""

    faults: tuple[tuple[str, str], ...] = ()
    """What befalls every request that asks for no fault itself; names and values as in `x-simulate-*` headers."""

    def __post_init__(self) -> None:
        ranges = (
            ("latency_ms", self.latency_ms, 0, 3_600_000),
            ("ttft_ms", self.ttft_ms, 0, 3_600_000),
            ("chunk_ms", self.chunk_ms, 0, 3_600_000),
            ("tokens", self.tokens, 0, 1_000_000),
            ("error_rate", self.error_rate, 0, 1),
            ("error_status", self.error_status, 400, 599),
            ("requests_per_minute", self.requests_per_minute, 1, 10**12),
            ("tokens_per_minute", self.tokens_per_minute, 1, 10**12),
        )
        for name, value, least, most in ranges:
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must be within {least}..{most}, not {value}")
        Faults.named(self.faults)
