"""The closed family of errors a request can end in.

Each carries facts and no HTTP; `web/errors.py` alone decides on status, body and headers. Adapters translate foreign
exceptions into these at the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from proxy.core.bucket import NeverFits, OverBudget, Refused

__all__ = [
    "BodyTimedOut",
    "BodyTooLarge",
    "BudgetUsedUp",
    "EndpointClosed",
    "InvalidKey",
    "InvalidRequest",
    "LimitReached",
    "MethodNotAllowed",
    "MissingKey",
    "ModelNotFound",
    "ModelNotPriced",
    "NeverAdmissible",
    "NotInCache",
    "Overloaded",
    "StoreAway",
    "TollgateError",
    "UnknownPath",
    "UpstreamFailure",
    "UpstreamFault",
    "UpstreamKeyRefused",
]


class TollgateError(Exception):
    """Root of the family; never raised itself."""


class MissingKey(TollgateError):
    """The request carries no key."""


class InvalidKey(TollgateError):
    """The key is malformed, unknown, expired or revoked; which one is not told."""


@dataclass(eq=False)
class InvalidRequest(TollgateError):
    """The request is not what the endpoint takes."""

    message: str
    param: str | None = None
    code: str | None = None


@dataclass(eq=False)
class BodyTooLarge(TollgateError):
    """The body is over the limit."""

    limit_bytes: int


class BodyTimedOut(TollgateError):
    """The body stopped coming."""


@dataclass(eq=False)
class ModelNotFound(TollgateError):
    """No such model, or not for this key; the two are not told apart."""

    model: str


@dataclass(eq=False)
class NotInCache(TollgateError):
    """The client takes an answer from the cache or none, and there is none."""

    reason: str
    """Why there is none."""


@dataclass(eq=False)
class EndpointClosed(TollgateError):
    """The path exists at OpenAI and is not open to this team, or not with this parameter."""

    path: str
    param: str | None = None
    """What refers to something kept there."""


@dataclass(eq=False)
class UnknownPath(TollgateError):
    """No such path or method."""

    method: str
    path: str


@dataclass(eq=False)
class MethodNotAllowed(TollgateError):
    """The path is open, to another method."""

    method: str
    path: str
    allowed: str


@dataclass(eq=False)
class LimitReached(TollgateError):
    """A rate limit refused the request; it would pass after `refusal.wait_ms`."""

    team: str
    model: str
    refusal: Refused
    key: str = ""
    """What the caller's own key is called."""


@dataclass(eq=False)
class NeverAdmissible(TollgateError):
    """The request is larger than a bucket is deep; waiting does not help."""

    team: str
    model: str
    refusal: NeverFits
    key: str = ""
    """What the caller's own key is called."""


@dataclass(eq=False)
class BudgetUsedUp(TollgateError):
    """The request might cost more than a budget has left: the next day or month may have it, or a larger budget."""

    team: str
    model: str
    refusal: OverBudget
    key: str = ""
    """What the caller's own key is called."""


@dataclass(eq=False)
class ModelNotPriced(TollgateError):
    """The model has no price, and the team or key has a budget, which nothing could be held against."""

    team: str
    model: str


class UpstreamFault(StrEnum):
    """What went wrong between us and upstream; also the label `kind` of the metric."""

    UNREACHABLE = "unreachable"
    """No connection: refused, name not found, TLS failure. The only one where upstream has not seen the request."""
    TIMEOUT = "timeout"
    """A read or total deadline passed; one of connecting is `UNREACHABLE`."""
    BROKEN = "broken"
    """The connection broke after the request was sent, or the answer was not HTTP."""
    CONTENT = "content"
    """The answer was HTTP and not what the protocol promises."""


@dataclass(eq=False)
class UpstreamFailure(TollgateError):
    """Upstream gave no usable answer."""

    upstream: str
    fault: UpstreamFault
    attempts: int = 1
    """Calls made, this one included."""


@dataclass(eq=False)
class UpstreamKeyRefused(TollgateError):
    """Upstream answered 401 to the key we hold for it."""

    upstream: str


@dataclass(eq=False)
class Overloaded(TollgateError):
    """We take no more work for now: draining, queue full, spool at its quota."""

    reason: str
    retry_after_ms: int = 1_000


@dataclass(eq=False)
class StoreAway(TollgateError):
    """A store this request cannot do without did not answer."""

    store: str
    operation: str
