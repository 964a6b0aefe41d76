"""One call upstream, from its begin record to the last byte of its answer."""

from __future__ import annotations

from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.forward import dispatch, forward
from proxy.pipeline.pass_on import pass_media
from proxy.pipeline.relay import relay
from proxy.pipeline.services import Services
from proxy.ports import Downstream

__all__ = ["call"]


async def call(exchange: Exchange, client: Downstream, services: Services) -> Reply:
    """Ask upstream on behalf of an admitted request. Raises `TollgateError`, `ConnectionResetError`."""
    try:
        dispatch(exchange, services)
        answer = await forward(exchange, services)
        media = exchange.kind.media
        if media is not None and answer.status < 300:
            return await pass_media(exchange, media, answer, client, services)
        return await relay(exchange, answer, client, services)
    finally:
        if exchange.let_go is not None:
            exchange.let_go()
