"""What is asked for: strict parse, checks, the model and its price."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl

from msgspec.structs import replace

from proxy.core.asked import Asked
from proxy.core.deployment import with_deployment
from proxy.core.errors import EndpointClosed, InvalidRequest, ModelNotFound
from proxy.core.headers import holds_key
from proxy.core.media import MEDIA_MODELS
from proxy.core.multipart import Form
from proxy.core.principal import Principal
from proxy.core.splice import with_model
from proxy.core.strict_json import parse_object
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.recent import Understood
from proxy.pipeline.services import Policy, Services

__all__ = ["AT_ONCE_BYTES", "interpret", "interpret_form", "is_open_model", "takes_long"]


AT_ONCE_BYTES = 128 * 1024
"""A body that is larger is worked on in a thread: between two of its strings, others have their turn. It takes about a
millisecond, and as many as there are connections may come in one turn of the loop."""
_SMALL_BYTES = 16 * 1024
_AT_ONCE_VALUES = 4_000
"""Numbers in a list: they take as long to read as an image of thirty times their size."""
_NUMBERS_IN_AN_OBJECT = 8
"""What an object or a list takes, in such numbers."""


def takes_long(body: bytes) -> bool:
    """Whether reading a body would keep the loop for more than a millisecond or two."""
    size = len(body)
    if size <= _SMALL_BYTES or size > AT_ONCE_BYTES:
        return size > AT_ONCE_BYTES
    return body.count(b",") + _NUMBERS_IN_AN_OBJECT * (body.count(b"{") + body.count(b"[")) > _AT_ONCE_VALUES


async def interpret(exchange: Exchange, body: bytes, services: Services) -> None:
    """Read the body into `asked` and find the model's `price`; one that was read of late is taken as it was then.

    Raises `InvalidRequest`, `ModelNotFound`, and `EndpointClosed` for what refers to the account that all teams share.
    """
    known = (exchange.principal.team.name, exchange.endpoint, exchange.deployment, body)
    understood = services.recent.find(known)
    if understood is None:
        if takes_long(body):
            understood = Understood(known, *await asyncio.to_thread(_parse_long, exchange, body, services.policy))
        else:
            understood = Understood(known, *_parse(exchange, body, services.policy))
    exchange.understood, exchange.prompt_tokens = understood, understood.prompt_tokens
    _take(exchange, understood.named, understood.asked, services)


def interpret_form(exchange: Exchange, form: Form, services: Services) -> None:
    """Do the same for a form. Raises the same."""
    kind = exchange.kind
    if kind.parse_form is None:
        raise LookupError("its endpoint takes no form")
    asked = kind.parse_form(form.naming(exchange.deployment) if exchange.deployment else form)
    _take(exchange, asked.model, _by_its_own_name(asked, services.policy.aliases), services)


def _parse(exchange: Exchange, body: bytes, policy: Policy) -> tuple[str, Asked]:
    """What the client calls the model, and what it asks of that."""
    parsed = parse_object(body, policy.max_json_depth)
    if exchange.deployment:
        parsed, body = with_deployment(parsed, body, exchange.deployment)
    asked = exchange.kind.parse(parsed, body)
    return asked.model, _by_its_own_name(asked, policy.aliases)


def _parse_long(exchange: Exchange, body: bytes, policy: Policy) -> tuple[str, Asked, int]:
    """The same, and the tokens of the prompt: to estimate them, all of it is looked through once more."""
    named, asked = _parse(exchange, body, policy)
    return named, asked, exchange.kind.estimate(asked)


def _take(exchange: Exchange, named: str, asked: Asked, services: Services) -> None:
    if exchange.query:
        _refuse_model_in(exchange.query)
    price = services.prices.price(asked.model, exchange.at_ms)
    if price is None and holds_key(named, exchange.headers):
        # Whoever mixed up two variables must not find the key in log and ledger, where models are told by name.
        raise InvalidRequest("What stands for the model is a key.", param="model", code="model_not_found")
    exchange.named, exchange.asked, exchange.price = named, asked, price
    if asked.state is not None and not exchange.principal.team.allow_stateful:
        raise EndpointClosed(f"/v1{exchange.path}", asked.state)
    if not is_open_model(named, exchange.principal, services, priced=price is not None):
        raise ModelNotFound(named)
    maximum, tokens, name = price.max_output_tokens if price else None, asked.max_output_tokens, asked.max_output_param
    if maximum is not None and tokens is not None and tokens > maximum:
        raise InvalidRequest(
            f"{name} is too large: {tokens}. This model supports at most {maximum} completion tokens.", param=name
        )


def _refuse_model_in(query: str) -> None:
    """Refuse one that names a model: some upstreams let it win over the one of the body, which is what we look at."""
    if any(name.lower() == "model" for name, _ in parse_qsl(query, keep_blank_values=True)):
        raise InvalidRequest("The model is named in the body, not in the query.", param="model")


def is_open_model(name: str, principal: Principal, services: Services, *, priced: bool) -> bool:
    """Whether `name`, or the model it is an alias of, exists for this caller.

    The model is known by its price or by name, and served by an upstream; team and key are open to it, or to the alias.
    `priced` is the model's.
    """
    policy = services.policy
    model = policy.aliases.get(name, name)
    known = priced or policy.allow_unknown_models or model in policy.extra_models or model in MEDIA_MODELS
    if not known or not services.upstreams.serve(model):
        return False
    return principal.may_use_any({name, model})


def _by_its_own_name(asked: Asked, aliases: Mapping[str, str]) -> Asked:
    """The request as if it had named the model itself: nothing behind this knows of aliases."""
    model = aliases.get(asked.model)
    if model is None:
        return asked
    # A form has no bytes here: they are put together when it is known what upstream calls the model.
    raw = with_model(asked.raw, model) if asked.raw else asked.raw
    return replace(asked, model=model, body={**asked.body, "model": model}, raw=raw)
