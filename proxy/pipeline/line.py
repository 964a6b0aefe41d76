"""The line every metered request travels, in the order in which it lives."""

from __future__ import annotations

from proxy.pipeline.admit import admit
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.call import call
from proxy.pipeline.coalesce import travel_apart, travel_together
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.form import comes_as_form, received
from proxy.pipeline.interpret import interpret, interpret_form
from proxy.pipeline.lookup import look_up
from proxy.pipeline.relay import replay
from proxy.pipeline.services import Services
from proxy.pipeline.settle import settle_broken, settle_hit
from proxy.pipeline.shadow import decide_shadow
from proxy.ports import Downstream, Sender

__all__ = ["travel"]


async def travel(exchange: Exchange, client: Sender, services: Services) -> Reply:
    """Answer one request of a metered endpoint. Raises `TollgateError` for what could not be answered."""
    await authenticate(exchange, services)
    if comes_as_form(exchange):
        async with received(exchange, client, services) as form:
            interpret_form(exchange, form, services)
            return await _travel_on(exchange, client, services)
    body = await client.receive()
    await interpret(exchange, body, services)
    return await _travel_on(exchange, client, services)


async def _travel_on(exchange: Exchange, client: Downstream, services: Services) -> Reply:
    """Answer what has been understood."""
    await look_up(exchange, services)
    if exchange.address is not None and exchange.hit is None:
        # What a team asks for several times at once goes upstream once; admission and settlement are in there.
        return await travel_together(exchange, client, services)
    if services.policy.max_draining and exchange.hit is None:
        # A call that is to go on without its client needs a task of its own.
        return await travel_apart(exchange, client, services)
    await admit(exchange, services)
    try:
        await decide_shadow(exchange, services)
        if exchange.hit is not None:
            settle_hit(exchange, services)
            return replay(exchange)
        return await call(exchange, client, services)
    except BaseException as error:
        # Whatever ended it, a cancellation for the client's leaving included: the account is written first.
        settle_broken(exchange, services, error)
        raise
