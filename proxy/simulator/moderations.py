"""Moderations: scores that follow from seed and input alone; `violence` in a text is flagged. They have no usage."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Endpoint
from proxy.simulator.inputs import tokens_of
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.plain_answer import PlainAnswer
from proxy.simulator.refusal import Refusal
from proxy.simulator.words import digest_of, fraction_of

__all__ = ["moderations_endpoint"]

_DEFAULT_MODEL = "omni-moderation-latest"
_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


class _Image(msgspec.Struct, frozen=True):
    url: str


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    image_url: _Image | None = None


class _Request(msgspec.Struct, frozen=True):
    input: str | list[str | _Part]
    model: str | None = None


_DECODER = msgspec.json.Decoder(_Request)


def moderations_endpoint(behaviour: Behaviour) -> Endpoint:
    """`POST /v1/moderations`. Several texts have a result each, a text and its images one together."""

    def endpoint(body: bytes) -> PlainAnswer:
        request = decode(_DECODER, body)
        model = resolve(request.model or _DEFAULT_MODEL, ModelKind.MODERATION)
        given = [request.input] if isinstance(request.input, str) else request.input
        texts = [each if isinstance(each, str) else each.text or "" for each in given]
        if not given:
            raise Refusal(400, "'input' cannot be empty.", param="input")
        joined = any(isinstance(each, _Part) for each in given)
        images = sum(isinstance(each, _Part) and each.image_url is not None for each in given)
        results = [_result(behaviour.seed, text, images) for text in (["".join(texts)] if joined else texts)]
        return PlainAnswer(
            model=model,
            input_tokens=sum(map(tokens_of, texts)),
            write=lambda stamp: {"id": f"modr-{stamp.serial}", "model": model, "results": results},
        )

    return endpoint


def _result(seed: int, text: str, images: int) -> dict[str, object]:
    flagged = {name: name == "violence" and name in text for name in _CATEGORIES}
    digest = digest_of(seed, text, images)
    scores = {name: 0.5 * (fraction_of(digest, name) + flagged[name]) for name in _CATEGORIES}
    applied: Sequence[str] = ["text", "image"] if images else ["text"]
    return {
        "flagged": any(flagged.values()),
        "categories": flagged,
        "category_scores": scores,
        "category_applied_input_types": dict.fromkeys(_CATEGORIES, applied),
    }
