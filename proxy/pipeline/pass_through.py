"""What is kept at OpenAI, for teams that were opened to it: passed in both directions as it comes.

It is one request of the team's limits and one event of the ledger; what upstream bills for it is not known here.
"""

from __future__ import annotations

from proxy.core.asked import Asked
from proxy.core.endpoints import Passed
from proxy.core.errors import EndpointClosed
from proxy.pipeline.admit import admit
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.forward import dispatch, forward
from proxy.pipeline.pass_on import pass_as_it_is
from proxy.pipeline.services import Services
from proxy.pipeline.settle import settle_broken
from proxy.pipeline.shadow import decide_shadow
from proxy.ports import Sender

__all__ = ["pass_through"]


async def pass_through(exchange: Exchange, family: Passed, client: Sender, services: Services) -> Reply:
    """Answer one request for something that is kept upstream. Raises `TollgateError`, `ConnectionResetError`."""
    await authenticate(exchange, services)
    if not exchange.principal.team.allow_stateful:
        raise EndpointClosed(f"/v1{exchange.path}")
    body = client.stream(services.policy.max_upload_bytes)
    exchange.as_it_is = True
    exchange.asked = Asked({}, b"", "", max_output_tokens=0, billed=family.works)
    if body.length != 0:
        exchange.body = lambda _: body
    await admit(exchange, services)
    try:
        await decide_shadow(exchange, services)
        dispatch(exchange, services)
        answer = await forward(exchange, services)
        return await pass_as_it_is(exchange, answer, client, services)
    except BaseException as error:
        # No tokens are known of it, whatever upstream goes on to do.
        exchange.running = False
        settle_broken(exchange, services, error)
        raise
