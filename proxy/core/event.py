"""What the ledger keeps of one request: the begin record and the usage event."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proxy.core.pricing import ServiceTier
from proxy.core.usage import NO_USAGE, Usage

__all__ = ["Dispatch", "Outcome", "UsageEvent"]


class Outcome(StrEnum):
    """How an exchange ended; also the label `outcome` of the metric and of the log line."""

    OK = "ok"
    """Answered by upstream with a 2xx, to the end."""
    CACHED = "cached"
    """Answered from the cache, or with what was being fetched for another request at the time."""
    REJECTED = "rejected"
    """Refused by us for what it was: authentication, a malformed body, an unknown model, a closed path."""
    LIMITED = "limited"
    """Refused by a limit of ours."""
    UPSTREAM_ERROR = "upstream_error"
    """Upstream answered with an error, was unreachable or broke off."""
    CLIENT_GONE = "client_gone"
    """The client left before the answer was complete; where it was drained, whatever upstream brought."""
    UNAVAILABLE = "unavailable"
    """Refused because we are overloaded, draining or without a store we need; or cut when the time to drain was up."""
    FAILED = "failed"
    """A fault of ours."""
    INTERRUPTED = "interrupted"
    """The worker died between dispatch and settlement; written by recovery only."""


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """The begin record, written before a request is sent upstream.

    It carries enough to charge for the request should its worker die: the reserved token counts are upper estimates.
    """

    event_id: str
    """UUIDv7 in canonical form, made at admission."""
    at_ms: int
    """Unix time in milliseconds of the admission; its UTC day is the event's day."""
    request_id: str
    team: str
    key_id: str
    endpoint: str
    """GenAI operation name: `chat`, `embeddings`..."""
    model: str
    """The model as the client asked for it."""
    upstream: str
    reserved_input_tokens: int
    reserved_output_tokens: int
    price_id: str | None
    """Price row that held at admission, None for a model without a price."""
    service_tier: ServiceTier = ServiceTier.DEFAULT
    """As the client asked for it."""


class UsageEvent(msgspec.Struct, frozen=True, gc=False):
    """One line of the account: exactly one for every dispatched request, and for every one answered without."""

    event_id: str
    at_ms: int
    request_id: str
    team: str
    key_id: str
    endpoint: str
    model: str
    upstream: str
    """Name of the upstream, empty where nothing was sent there."""
    status: int
    """HTTP status the client was given (499: it left before there was one)."""
    outcome: Outcome
    usage: Usage = NO_USAGE
    cost_pico_usd: int = 0
    saved_pico_usd: int = 0
    """What an answer from the cache, or shared with another request, would have cost."""
    price_id: str | None = None
    estimated: bool = False
    """The token counts are ours, because upstream's own did not come."""
    attempts: int = 1
    """Calls made upstream for this request; 0 where another's was enough."""
    duration_ms: int = 0
