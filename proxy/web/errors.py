"""The one table from our errors to status, body and headers, in OpenAI's shape."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from proxy.core import errors
from proxy.core.bucket import Dimension
from proxy.core.budget import Period
from proxy.core.caps import owner_of, period_of, usd_of
from proxy.core.decision import TEAM_SCOPE
from proxy.core.durations import format_duration
from proxy.core.event import Outcome
from proxy.core.headers import rate_limit_headers
from proxy.core.views.instants import instant_of
from proxy.pipeline.exchange import Reply

__all__ = ["ErrorAnswer", "answer_of", "error_body", "fault", "internal_error", "reply_of", "status_of"]

_log = logging.getLogger(__name__)

_LONGEST_SDK_WAIT_MS = 60_000
"""Beyond it official SDKs ignore the wait and come back too early: they are told not to retry."""

Headers = tuple[tuple[str, str], ...]


_ALWAYS_TOLD: Headers = (("Content-Type", "application/json"), ("Cache-Control", "private, no-store"))


class ErrorAnswer(msgspec.Struct, frozen=True, gc=False):
    """What a client is told of an error."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Headers = ()
    outcome: Outcome = Outcome.REJECTED


def answer_of(error: errors.TollgateError) -> ErrorAnswer:
    """Look an error up; one that is not in the table is a fault of ours."""
    build = _TABLE.get(type(error))
    return build(error) if build is not None else internal_error()


def reply_of(answer: ErrorAnswer, own_headers: Headers = ()) -> Reply:
    """Write an error as a reply with JSON body; what it says itself goes before `own_headers`."""
    return Reply(answer.status, (*own_headers, *_ALWAYS_TOLD, *answer.headers), error_body(answer))


def error_body(answer: ErrorAnswer) -> bytes:
    """All four keys, always."""
    return msgspec.json.encode(
        {"error": {"message": answer.message, "type": answer.type, "param": answer.param, "code": answer.code}}
    )


def status_of(error: errors.TollgateError) -> int:
    """HTTP status an error is answered with."""
    return answer_of(error).status


def internal_error() -> ErrorAnswer:
    """What is told of a fault of ours: nothing but that it is ours."""
    return ErrorAnswer(
        500, "The gateway had an error while processing your request.", "server_error", outcome=Outcome.FAILED
    )


def fault(error: BaseException | None) -> ErrorAnswer:
    """Log a fault of ours by its type and place; its message is left out, for it could quote a body or a key."""
    place = "".join(traceback.format_tb(error.__traceback__)) if error is not None else ""
    _log.error("unexpected %s\n%s", type(error).__name__, place)
    return internal_error()


def _missing_key(_: errors.MissingKey) -> ErrorAnswer:
    return ErrorAnswer(
        401,
        "You didn't provide an API key. Send the key your platform team issued to you in an Authorization header: "
        "'Authorization: Bearer sk-tg_...'.",
        headers=(("WWW-Authenticate", "Bearer"),),
    )


def _invalid_key(_: errors.InvalidKey) -> ErrorAnswer:
    return ErrorAnswer(
        401,
        "Incorrect API key provided: it is malformed, unknown, expired or revoked. "
        "Ask your platform team for a new one.",
        code="invalid_api_key",
        headers=(("WWW-Authenticate", "Bearer"),),
    )


def _invalid_request(error: errors.InvalidRequest) -> ErrorAnswer:
    return ErrorAnswer(400, error.message, param=error.param, code=error.code)


def _body_too_large(error: errors.BodyTooLarge) -> ErrorAnswer:
    return ErrorAnswer(413, f"The request body is larger than {error.limit_bytes} bytes.", code="request_too_large")


def _body_timed_out(_: errors.BodyTimedOut) -> ErrorAnswer:
    return ErrorAnswer(408, "The request body stopped coming.", code="request_timeout")


def _model_not_found(error: errors.ModelNotFound) -> ErrorAnswer:
    return ErrorAnswer(
        404,
        f"The model `{error.model}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def _not_in_cache(error: errors.NotInCache) -> ErrorAnswer:
    return ErrorAnswer(
        504,
        f"The answer is not in the cache ({error.reason}), and only-if-cached keeps this request from being sent on.",
        code="not_in_cache",
        # It was neither answered from the cache nor sent on. To ask again at once, as SDKs do after a 504, is no help.
        headers=(("Cache-Status", "tollgate; detail=only-if-cached"), ("x-should-retry", "false")),
    )


def _endpoint_closed(error: errors.EndpointClosed) -> ErrorAnswer:
    if error.param is not None:
        what = f"{error.path} with '{error.param}' is closed: it refers to what is kept at OpenAI, which"
    else:
        what = f"{error.path} is closed: what it keeps at OpenAI"
    return ErrorAnswer(
        403, f"{what} is shared by all teams of this gateway.", param=error.param, code="endpoint_not_allowed"
    )


def _unknown_path(error: errors.UnknownPath) -> ErrorAnswer:
    return ErrorAnswer(404, f"Invalid URL ({error.method} {error.path})")


def _method_not_allowed(error: errors.MethodNotAllowed) -> ErrorAnswer:
    return ErrorAnswer(
        405,
        f"Not allowed to {error.method} on {error.path}: it takes {error.allowed}.",
        headers=(("Allow", error.allowed),),
    )


def _limit_reached(error: errors.LimitReached) -> ErrorAnswer:
    refusal = error.refusal
    wait_ms = max(1, refusal.wait_ms)
    headers: Headers = (
        *rate_limit_headers(refusal.standing),
        ("retry-after-ms", str(wait_ms)),
        ("Retry-After", str(-(-wait_ms // 1_000))),
    )
    if wait_ms > _LONGEST_SDK_WAIT_MS:
        headers += (("x-should-retry", "false"),)
    if refusal.dimension is Dimension.PARALLEL:
        message = (
            f"Too many requests at one time for {error.model or _KEPT} of {_holder(error)}: Limit {refusal.limit}, "
            f"In flight {refusal.used}. Please try again when one of them has ended."
        )
        type_ = "requests"
    else:
        short, type_ = _DIMENSIONS[refusal.dimension]
        message = (
            f"Rate limit reached for {error.model or _KEPT} of {_holder(error)} on {short}: Limit {refusal.limit}, "
            f"Used {refusal.used}, Requested {refusal.requested}. Please try again in {format_duration(wait_ms)}."
        )
    return ErrorAnswer(429, message, type_, code="rate_limit_exceeded", headers=headers, outcome=Outcome.LIMITED)


def _never_admissible(error: errors.NeverAdmissible) -> ErrorAnswer:
    refusal = error.refusal
    short, type_ = _DIMENSIONS[refusal.dimension]
    return ErrorAnswer(
        429,
        f"Request too large for {error.model or _KEPT} of {_holder(error)} on {short}: Limit {refusal.limit}, "
        f"Requested {refusal.requested}. Shorten the input or lower the maximum of output tokens; "
        "waiting does not help.",
        type_,
        code="rate_limit_exceeded",
        headers=(*rate_limit_headers(refusal.standing), ("x-should-retry", "false")),
        outcome=Outcome.LIMITED,
    )


def _budget_used_up(error: errors.BudgetUsedUp) -> ErrorAnswer:
    refusal, span = error.refusal, error.refusal.cap.span
    of_key = refusal.cap.scope != TEAM_SCOPE
    holder = f"key {error.key or owner_of(refusal.cap.scope)}" if of_key else f"team {error.team}"
    limit = refusal.cap.limit_nano_usd or 0
    if span.end_ms is None:
        during = ""
        when = "It does not open again by itself: ask your platform team for a larger one."
    else:
        during = f" ({span.id}, UTC)"
        when = f"It opens again at {instant_of(span.end_ms):%Y-%m-%dT%H:%M:%SZ}."
    return ErrorAnswer(
        429,
        f"You exceeded your current budget: {holder} may spend {usd_of(limit)} USD {_SPANS[period_of(span)]}"
        f"{during}, has used {usd_of(refusal.used_nano_usd)} USD, and this request for {error.model} may cost up to "
        f"{usd_of(refusal.requested_nano_usd)} USD. {when}",
        "insufficient_quota",
        code="insufficient_quota",
        # No wait is told: it would be hours, and official SDKs would come back all the same.
        headers=(*rate_limit_headers(refusal.standing), ("x-should-retry", "false")),
        outcome=Outcome.LIMITED,
    )


def _model_not_priced(error: errors.ModelNotPriced) -> ErrorAnswer:
    if not error.model:
        return ErrorAnswer(
            403,
            f"What upstream bills for this is not known here, and requests of team {error.team} are held to a budget.",
            code="model_not_priced",
        )
    return ErrorAnswer(
        403,
        f"The model `{error.model}` has no price here, and requests of team {error.team} are held to a budget, which "
        "cannot count what it does not know the cost of. Ask your platform team to give the model a price.",
        param="model",
        code="model_not_priced",
    )


def _holder(error: errors.LimitReached | errors.NeverAdmissible) -> str:
    """Whose limit it is, for the caller to read: its own key, its team, or a model of its team's."""
    kind, _, name = error.refusal.scope.partition(":")
    match kind:
        case "key":
            return f"key {error.key or name}"
        case "model":
            return f"team {error.team} for model {name}"
        case _:
            return f"team {error.team}"


def _upstream_failure(error: errors.UpstreamFailure) -> ErrorAnswer:
    if error.fault is errors.UpstreamFault.TIMEOUT:
        status, message, code = 504, "The upstream API did not answer in time.", "upstream_timeout"
    elif error.fault is errors.UpstreamFault.UNREACHABLE:
        status, message, code = 502, "The upstream API could not be reached.", "upstream_unreachable"
    else:
        status, message, code = 502, "The upstream API gave no usable answer.", "upstream_unreachable"
    return ErrorAnswer(status, message, "server_error", code=code, outcome=Outcome.UPSTREAM_ERROR)


def _upstream_key_refused(_: errors.UpstreamKeyRefused) -> ErrorAnswer:
    return ErrorAnswer(
        502,
        "The upstream API refused the gateway's own credentials. This is for your platform team to mend, not for you.",
        "server_error",
        code="upstream_key_refused",
        headers=(("x-should-retry", "false"),),
        outcome=Outcome.UPSTREAM_ERROR,
    )


def _overloaded(error: errors.Overloaded) -> ErrorAnswer:
    return ErrorAnswer(
        503,
        f"The gateway takes no more work for the moment: {error.reason}.",
        "service_unavailable_error",
        code="server_is_overloaded",
        headers=(
            ("retry-after-ms", str(error.retry_after_ms)),
            ("Retry-After", str(max(1, -(-error.retry_after_ms // 1_000)))),
        ),
        outcome=Outcome.UNAVAILABLE,
    )


def _store_away(_: errors.StoreAway) -> ErrorAnswer:
    return _overloaded(errors.Overloaded("a store it needs does not answer"))


_KEPT = "what is kept at OpenAI"
"""Stands where a model would, for requests that name none."""
_SPANS = {Period.DAY: "a day", Period.MONTH: "a month", Period.TOTAL: "in total"}
_DIMENSIONS = {
    Dimension.REQUESTS: ("requests per min (RPM)", "requests"),
    Dimension.TOKENS: ("tokens per min (TPM)", "tokens"),
}

_TABLE: dict[type[errors.TollgateError], Callable[[Any], ErrorAnswer]] = {
    errors.MissingKey: _missing_key,
    errors.InvalidKey: _invalid_key,
    errors.InvalidRequest: _invalid_request,
    errors.BodyTooLarge: _body_too_large,
    errors.BodyTimedOut: _body_timed_out,
    errors.ModelNotFound: _model_not_found,
    errors.NotInCache: _not_in_cache,
    errors.EndpointClosed: _endpoint_closed,
    errors.UnknownPath: _unknown_path,
    errors.MethodNotAllowed: _method_not_allowed,
    errors.LimitReached: _limit_reached,
    errors.NeverAdmissible: _never_admissible,
    errors.BudgetUsedUp: _budget_used_up,
    errors.ModelNotPriced: _model_not_priced,
    errors.UpstreamFailure: _upstream_failure,
    errors.UpstreamKeyRefused: _upstream_key_refused,
    errors.Overloaded: _overloaded,
    errors.StoreAway: _store_away,
}
