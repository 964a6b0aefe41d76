"""A request that comes as a form: what it asks for is read as it passes by, the whole of it is kept for upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from proxy.core.errors import InvalidRequest
from proxy.core.multipart import Form, FormReader
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services
from proxy.ports import Body, Holding, Patch, Sender

__all__ = ["comes_as_form", "received"]

_MULTIPART = "multipart/form-data"


def comes_as_form(exchange: Exchange) -> bool:
    """Whether it is to be read as a form: its endpoint takes one, and it says that it is one."""
    if exchange.kind.parse_form is None:
        return False
    return exchange.headers.get("Content-Type", "").partition(";")[0].strip().lower() == _MULTIPART


@asynccontextmanager
async def received(exchange: Exchange, client: Sender, services: Services) -> AsyncIterator[Form]:
    """Read the form, and keep it until it is answered or will not be.

    Sets `body`, which goes upstream as often as that takes. Raises `BodyTooLarge`, `InvalidRequest`, `Overloaded`.
    """
    if exchange.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
        raise InvalidRequest("A form is taken without a content encoding.", code="unsupported_content_encoding")
    if services.hold is None:
        raise LookupError("nowhere to keep a form")
    reader = FormReader(exchange.headers.get("Content-Type", ""))
    body = client.stream(services.policy.max_upload_bytes)
    holding = services.hold()
    try:
        async for chunk in body.chunks():
            reader.feed(chunk)
            await holding.take(chunk)
        form = reader.finish()
        exchange.body, exchange.let_go = partial(_with_model, form, holding), holding.close
        yield form
    finally:
        # A call that has begun may go on when its client has left.
        if not exchange.dispatched:
            holding.close()


def _with_model(form: Form, holding: Holding, model: str) -> Body:
    """The form as it came where it names the model as upstream does, else with that name put in."""
    if form.one("model") == model:
        return holding.body()
    span = form.spans.get("model")
    # One that names none, or leaves it empty, is told what was taken for it.
    return holding.body(Patch(0, 0, form.part("model", model)) if span is None else Patch(*span, model.encode()))
