"""What requests for images and audio ask for, as JSON or as forms.

Source of names, models and defaults: OpenAI's API specification, `CreateImageRequest`, `CreateImageEditRequest`,
`EditImageBodyJsonParam`, `CreateImageVariationRequest`, `CreateSpeechRequest`, `CreateTranscriptionRequest` and
`CreateTranslationRequest`. Where the model is left out, its default is written into what goes upstream: what is
allowed, limited and priced is then what runs, whatever upstream's default has become.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from proxy.core.asked import Asked
from proxy.core.count import Said
from proxy.core.deployment import with_deployment
from proxy.core.errors import InvalidRequest
from proxy.core.estimate import text_tokens
from proxy.core.fields import NUMBER, Types, check_fields, checked_model, missing
from proxy.core.multipart import Form
from proxy.core.strict_json import JsonObject

__all__ = ["MEDIA_MODELS", "estimate_media", "form_only", "parse_audio_form", "parse_image", "parse_image_edit",
           "parse_image_edit_form", "parse_speech", "parse_variation_form", "prompt_of_media"]  # fmt: skip

MEDIA_MODELS = frozenset(
    {
        "chatgpt-image-latest", "dall-e-2", "dall-e-3", "gpt-4o-mini-transcribe", "gpt-4o-mini-transcribe-2025-12-15",
        "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15", "gpt-4o-transcribe", "gpt-4o-transcribe-diarize",
        "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2", "gpt-image-2-2026-04-21", "gpt-transcribe",
        "tts-1", "tts-1-hd", "whisper-1",
    }
)  # fmt: skip
"""OpenAI's for images and audio: known without a price, for most are not paid by the token."""

_DALL_E_2 = "dall-e-2"
_EDITING = "gpt-image-1.5"
_READ = ("prompt", "input", "instructions")
"""Parameters whose text a model reads."""
_IMAGE_TYPES: Types = MappingProxyType(
    {
        "background": (str,),
        "images": (list,),
        "mask": (dict,),
        "model": (str,),
        "moderation": (str,),
        "n": (int,),
        "output_compression": (int,),
        "output_format": (str,),
        "partial_images": (int,),
        "prompt": (str,),
        "quality": (str,),
        "response_format": (str,),
        "size": (str,),
        "stream": (bool,),
        "style": (str,),
        "user": (str,),
    }
)
_SPEECH_TYPES: Types = MappingProxyType(
    {
        "input": (str,),
        "instructions": (str,),
        "model": (str,),
        "response_format": (str,),
        "speed": NUMBER,
        "stream_format": (str,),
        "voice": (str, dict),
    }
)
_TELLING = frozenset({"", "json", "verbose_json", "diarized_json"})
"""Formats of a transcription that have a place for usage."""
_NOT_OF_DALL_E = ("background", "moderation", "output_compression", "output_format", "partial_images", "stream")
"""Parameters that would make another model than dall-e-2 the default; the specification does not say which."""


def parse_image(body: JsonObject, raw: bytes) -> Asked:
    """Check a request for images. Raises `InvalidRequest` naming the parameter."""
    check_fields(body, _IMAGE_TYPES, {})
    _require(body, ("prompt",))
    if not body.get("model") and any(body.get(name) for name in _NOT_OF_DALL_E):
        raise missing("model", "You must provide a model parameter with those of the GPT image models.")
    return _asked(body, raw, _DALL_E_2)


def parse_image_edit(body: JsonObject, raw: bytes) -> Asked:
    """Check a request for an edit whose images are named in JSON: what is read of them has no price.

    Raises `InvalidRequest` naming the parameter.
    """
    check_fields(body, _IMAGE_TYPES, {})
    _require(body, ("prompt", "images"))
    state = None
    if _names_file(body["images"]):
        state = "images"
    elif _names_file([body.get("mask")]):
        state = "mask"
    return replace(_asked(body, raw, _EDITING, state), tells_cost=False)


def parse_speech(body: JsonObject, raw: bytes) -> Asked:
    """Check a request for speech. A voice of one's own is kept at OpenAI. Raises `InvalidRequest`."""
    check_fields(body, _SPEECH_TYPES, {})
    _require(body, ("input", "voice"))
    asked = _asked(body, raw, None, "voice" if isinstance(body["voice"], dict) else None)
    return replace(asked, tells_cost=body.get("stream_format") == "sse")


def form_only(_: JsonObject, __: bytes) -> Asked:
    """Refuse a body that is no form."""
    raise InvalidRequest("This endpoint takes a form: send multipart/form-data.")


def parse_image_edit_form(form: Form) -> Asked:
    """Check a form with images to edit. Raises `InvalidRequest` naming the parameter."""
    _require_file(form, "image")
    return replace(_asked_by_form(form, _EDITING, needed=("prompt",)), tells_cost=False)


def parse_variation_form(form: Form) -> Asked:
    """Check a form with an image to vary. Raises `InvalidRequest` naming the parameter."""
    _require_file(form, "image")
    return replace(_asked_by_form(form, _DALL_E_2), tells_cost=False)


def parse_audio_form(form: Form) -> Asked:
    """Check a form with speech to write down or to translate. Raises `InvalidRequest` naming the parameter."""
    _require_file(form, "file")
    asked = _asked_by_form(form, None)
    return replace(asked, tells_cost=_TELLING.issuperset(form.fields.get("response_format", ())))


def estimate_media(asked: Asked) -> int:
    """Tokens of the text a model reads; what images and audio come to is known once upstream has said so."""
    return sum(text_tokens(len(text)) for text in _texts(asked.body))


def prompt_of_media(asked: Asked) -> Said:
    """What a tokenizer can count of it."""
    return Said(tuple(_texts(asked.body)))


def _texts(body: JsonObject) -> list[str]:
    return [text for name in _READ if isinstance(text := body.get(name), str)]


def _asked(body: JsonObject, raw: bytes, default: str | None, state: str | None = None) -> Asked:
    model = checked_model(body.get("model") or default)
    if "model" not in body:
        body, raw = with_deployment(body, raw, model)
    elif not body["model"]:
        body = {**body, "model": model}
        raw = msgspec.json.encode(body)
    stream = body.get("stream") is True
    return Asked(body, raw, model, stream=stream, include_usage=True, max_output_tokens=0, state=state)


def _asked_by_form(form: Form, default: str | None, needed: Iterable[str] = ()) -> Asked:
    body: JsonObject = {name: form.one(name) for name in ("model", "prompt", "stream")}
    _require(body, needed)
    model = checked_model(body["model"] or default)
    stream = body["stream"] == "true"
    # As clients write in a form what is an object in JSON.
    state = next((name for name in form.fields if name.endswith("[file_id]")), None)
    return Asked(
        body | {"model": model}, b"", model, stream=stream, include_usage=True, max_output_tokens=0, state=state
    )


def _require(body: Mapping[str, object], names: Iterable[str]) -> None:
    for name in names:
        if not body.get(name):
            raise missing(name, f"You must provide '{name}', and it must not be empty.")


def _require_file(form: Form, name: str) -> None:
    if not any(each.partition("[")[0] == name for each in form.files):
        raise missing(name, f"You must provide '{name}', as a file of the form.")


def _names_file(images: object) -> bool:
    """Whether one of the images is a file that is kept at OpenAI."""
    return isinstance(images, list) and any(isinstance(each, dict) and "file_id" in each for each in images)
