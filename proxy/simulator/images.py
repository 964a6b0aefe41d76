"""Images: generations, edits and variations; small PNG files of noise, whatever their asked size and format.

Counting rule, as OpenAI's table for its own image models: output tokens by quality and shape, and a hundred for each
partial image of a stream. Input: one token for every four characters of the prompt or part of them, and 194 for each
image that is sent in. The older models have no usage and no streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Answer, Asked, Endpoint, Operation
from proxy.simulator.images_answer import ImageAnswer
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.multipart import Form, Part
from proxy.simulator.refusal import Refusal
from proxy.simulator.words import PIECE_CHARACTERS, digest_of

__all__ = ["edits_operation", "generations_endpoint", "of_form", "variations_operation"]

_OLDER = frozenset({"dall-e-2", "dall-e-3"})
_OUTPUT_TOKENS = {
    "low": {"square": 272, "portrait": 408, "landscape": 400},
    "medium": {"square": 1_056, "portrait": 1_584, "landscape": 1_568},
    "high": {"square": 4_160, "portrait": 6_240, "landscape": 6_208},
}
_SHAPES = {"1024x1024": "square", "1024x1536": "portrait", "1536x1024": "landscape"}
_AUTO = {"quality": "medium", "size": "1024x1024", "background": "opaque"}
_PARTIAL_TOKENS = 100
_INPUT_IMAGE_TOKENS = 194
_MOST_IMAGES = 16


class _Request(msgspec.Struct, frozen=True):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=32_000)]
    model: str = "dall-e-2"
    n: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: str | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=3)] | None = None
    stream: bool | None = None


_DECODER = msgspec.json.Decoder(_Request)
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def of_form(form: Form, kind: type[_Struct], **more: str) -> _Struct:
    """The fields of a form as a structure, the last value of each. Raises `Refusal` 400 with the field it is about."""
    given = {name: values[-1] for name, values in form.fields.items()}
    try:
        return msgspec.convert({**more, **given}, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"Invalid form: {error}.") from None


def generations_endpoint(behaviour: Behaviour) -> Endpoint:
    """`POST /v1/images/generations`."""
    return lambda body: _drawn(decode(_DECODER, body), (), "image_generation", behaviour)


def edits_operation(behaviour: Behaviour) -> Operation:
    """`POST /v1/images/edits`: a form with one image or several, and a mask."""

    def operation(asked: Asked) -> Answer:
        form = asked.needed_form()
        form.file("image")
        sources = [*form.files["image"], *form.files.get("mask", ())]
        if len(sources) > _MOST_IMAGES + 1:
            raise Refusal(400, f"At most {_MOST_IMAGES} images can be edited.", param="image")
        return _drawn(of_form(form, _Request), sources, "image_edit", behaviour)

    return operation


def variations_operation(behaviour: Behaviour) -> Operation:
    """`POST /v1/images/variations`: a form with one image; the oldest model alone does it."""

    def operation(asked: Asked) -> Answer:
        form = asked.needed_form()
        source = form.file("image")
        request = of_form(form, _Request, prompt="variation")
        if request.model != "dall-e-2":
            raise Refusal(400, f"The model `{request.model}` does not make variations.", param="model")
        return _drawn(request, (source,), "image_variation", behaviour)

    return operation


@dataclass(frozen=True, slots=True)
class _Look:
    """What becomes of `auto` and of what was left out."""

    size: str
    quality: str
    background: str

    @classmethod
    def of(cls, request: _Request) -> _Look:
        given = {"size": request.size, "quality": request.quality, "background": request.background}
        chosen = {name: _AUTO[name] if value in {None, "auto"} else str(value) for name, value in given.items()}
        if chosen["size"] not in _SHAPES:
            raise Refusal(400, f"Invalid value: '{chosen['size']}'.", param="size", code="invalid_value")
        if chosen["quality"] not in _OUTPUT_TOKENS:
            raise Refusal(400, f"Invalid value: '{chosen['quality']}'.", param="quality", code="invalid_value")
        return cls(**chosen)

    @property
    def tokens(self) -> int:
        return _OUTPUT_TOKENS[self.quality][_SHAPES[self.size]]


def _drawn(request: _Request, sources: Sequence[Part], kind: str, behaviour: Behaviour) -> ImageAnswer:
    model = resolve(request.model, ModelKind.IMAGE)
    count = request.n or 1
    told = (model, request.prompt, [source.sha256 for source in sources])
    digests = tuple(digest_of(behaviour.seed, *told, number) for number in range(count))
    text_tokens = -(-len(request.prompt) // PIECE_CHARACTERS)
    if model in _OLDER:
        if request.stream:
            raise Refusal(400, f"The model `{model}` does not stream.", param="stream", code="unsupported_parameter")
        revised = f"A picture of {request.prompt}" if model == "dall-e-3" else None
        return ImageAnswer(model, kind, digests, as_url=request.response_format != "b64_json", revised_prompt=revised)
    if request.response_format is not None:
        message = "Unknown parameter: 'response_format'."
        raise Refusal(400, message, param="response_format", code="unknown_parameter")
    look = _Look.of(request)
    partials = (request.partial_images or 0) if request.stream else 0
    read = {"text_tokens": text_tokens, "image_tokens": _INPUT_IMAGE_TOKENS * len(sources)}
    return ImageAnswer(
        model,
        kind,
        digests,
        input_details=read,
        output_tokens=look.tokens * count + _PARTIAL_TOKENS * partials,
        partials=partials,
        partial_tokens=_PARTIAL_TOKENS,
        stream=bool(request.stream),
        look={
            "size": look.size,
            "quality": look.quality,
            "background": look.background,
            "output_format": request.output_format or "png",
        },
    )
