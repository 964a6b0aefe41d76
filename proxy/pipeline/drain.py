"""What becomes of a call whose last listener has left: it is drained, read to its end for the account, or given up.

Drained are calls that upstream is at work on, so many at once as the operator lets, and until the deadline of the whole
exchange. Between two attempts nothing is at work, and none is begun for nobody.
"""

from __future__ import annotations

import asyncio
import logging
from traceback import format_tb

from proxy.core.errors import TollgateError
from proxy.core.event import Outcome
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.flight import Flight, Landing
from proxy.pipeline.report import Ending, report
from proxy.pipeline.services import Services
from proxy.pipeline.settle import CLIENT_CLOSED_REQUEST, settle_broken

__all__ = ["give_up", "give_up_all", "goes_on", "report_if_left"]

_log = logging.getLogger(__name__)


def goes_on(flight: Flight, services: Services) -> bool:
    """Whether a call goes on that nobody listens to: upstream is at work, and there is time and room for it."""
    leader, policy, flights = flight.leader, services.policy, services.flights
    if not policy.max_draining or not leader.running or services.shutdown.over:
        return False
    gone_ns = services.clock.monotonic_ns() - leader.started_ns - leader.queued_ns
    left_seconds = policy.retry.total_deadline_ms / 1_000 - gone_ns / 1e9
    if left_seconds <= 0:
        flights.on_given_up("deadline")
        return False
    if not flights.drain(flight, policy.max_draining):
        return False
    if flight.deadline is None:
        flight.deadline = asyncio.get_running_loop().call_later(left_seconds, _end_drain, flight, services)
    return True


def _end_drain(flight: Flight, services: Services) -> None:
    if flight.landing is None and not flight.heard:
        services.flights.on_given_up("deadline")
        give_up(flight, services)


def give_up(flight: Flight, services: Services) -> None:
    """End a call that nobody listens to where it is, the account first."""
    leader = flight.leader
    settle_broken(leader, services, asyncio.CancelledError())
    services.flights.end(flight, Landing())
    flight.stop()
    report_if_left(leader, services)


def give_up_all(services: Services) -> None:
    """Stop every call that nobody listens to: there is no more time."""
    for flight in services.flights.draining:
        if not flight.heard:
            give_up(flight, services)


def report_if_left(leader: Exchange, services: Services, error: Exception | None = None) -> None:
    """Count a request whose client has left before its call ended; a fault of ours that ended it is still one."""
    if not leader.outlives:
        return
    ending = Ending(CLIENT_CLOSED_REQUEST, Outcome.CLIENT_GONE)
    if error is not None and not isinstance(error, TollgateError | ConnectionResetError):
        ending = Ending(CLIENT_CLOSED_REQUEST, Outcome.FAILED, error=error)
        if leader.drained:
            # Nobody is left to raise it to.
            _log.error("unexpected %s\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))
    report(leader, ending, services)
