"""The line every metered request travels, in the order in which it lives."""

from __future__ import annotations

from proxy.pipeline.admit import admit
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.forward import dispatch, forward
from proxy.pipeline.interpret import interpret
from proxy.pipeline.lookup import look_up
from proxy.pipeline.relay import relay, replay
from proxy.pipeline.services import Services
from proxy.pipeline.settle import settle_broken, settle_hit
from proxy.pipeline.shadow import decide_shadow
from proxy.ports import Downstream

__all__ = ["travel"]


async def travel(exchange: Exchange, client: Downstream, services: Services) -> Reply:
    """Answer one chat completion. Raises `TollgateError` for what could not be answered."""
    await authenticate(exchange, services)
    body = await client.receive()
    interpret(exchange, body, services)
    await look_up(exchange, services)
    await admit(exchange, services)
    try:
        await decide_shadow(exchange, services)
        if exchange.hit is not None:
            settle_hit(exchange, services)
            return replay(exchange)
        dispatch(exchange, services)
        answer = await forward(exchange, services)
        return await relay(exchange, answer, client, services)
    except BaseException as error:
        # Whatever ended it, a cancellation for the client's leaving included: the account is written first.
        settle_broken(exchange, services, error)
        raise
