"""The models the simulated upstream knows, and the list it gives of them."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proxy.simulator.refusal import Refusal

__all__ = ["ModelKind", "list_body", "model_body", "resolve"]


class ModelKind(StrEnum):
    """Which endpoint a model answers on."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    MODERATION = "moderation"
    IMAGE = "image"
    SPEECH = "speech"
    TRANSCRIPTION = "transcription"


# Alias and the date of the snapshot it stands for; an empty date: the name is the snapshot.
_CHAT = {
    "chatgpt-4o-latest": "",
    "gpt-3.5-turbo": "0125",
    "gpt-4": "0613",
    "gpt-4-turbo": "2024-04-09",
    "gpt-4.1": "2025-04-14",
    "gpt-4.1-mini": "2025-04-14",
    "gpt-4.1-nano": "2025-04-14",
    "gpt-4o": "2024-08-06",
    "gpt-4o-mini": "2024-07-18",
    "gpt-5": "2025-08-07",
    "gpt-5-chat-latest": "",
    "gpt-5-mini": "2025-08-07",
    "gpt-5-nano": "2025-08-07",
    "gpt-5.1": "2025-11-13",
    "gpt-5.2": "2025-12-11",
    "o1": "2024-12-17",
    "o3": "2025-04-16",
    "o3-mini": "2025-01-31",
    "o4-mini": "2025-04-16",
}
_OTHER = {
    ModelKind.COMPLETION: ("babbage-002", "davinci-002", "gpt-3.5-turbo-instruct"),
    ModelKind.EMBEDDING: ("text-embedding-3-large", "text-embedding-3-small", "text-embedding-ada-002"),
    ModelKind.MODERATION: ("omni-moderation-2024-09-26", "omni-moderation-latest"),
    ModelKind.IMAGE: ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"),
    ModelKind.SPEECH: ("gpt-4o-mini-tts", "tts-1", "tts-1-hd"),
    ModelKind.TRANSCRIPTION: ("gpt-4o-mini-transcribe", "gpt-4o-transcribe", "whisper-1"),
}
_CREATED = 1_700_000_000

_SNAPSHOTS: dict[str, str] = {alias: f"{alias}-{date}" if date else alias for alias, date in _CHAT.items()} | {
    "gpt-4o-2024-05-13": "gpt-4o-2024-05-13",
    "gpt-4o-2024-11-20": "gpt-4o-2024-11-20",
}
_KINDS: dict[str, ModelKind] = {name: ModelKind.CHAT for pair in _SNAPSHOTS.items() for name in pair} | {
    name: kind for kind, names in _OTHER.items() for name in names
}
_FINE_TUNED = "ft:"


def _kind(model: str) -> ModelKind | None:
    if model.startswith(_FINE_TUNED):
        return _KINDS.get(model.removeprefix(_FINE_TUNED).split(":", 1)[0])
    return _KINDS.get(model)


def resolve(model: str, kind: ModelKind) -> str:
    """The snapshot that answers for `model`: `gpt-4o-mini` is answered by `gpt-4o-mini-2024-07-18`.

    Raises `Refusal` 404 for a model that does not exist or does not answer on this endpoint.
    """
    known = _kind(model)
    if known is None:
        raise _not_found(model)
    if known is not kind:
        raise Refusal(404, f"The model `{model}` is not a {kind} model.", param="model")
    return _SNAPSHOTS.get(model, model)


def _entry(model: str) -> dict[str, str | int]:
    return {"id": model, "object": "model", "created": _CREATED, "owned_by": "system"}


def list_body() -> bytes:
    """The body of `GET /v1/models`."""
    return msgspec.json.encode({"object": "list", "data": [_entry(model) for model in sorted(_KINDS)]})


def model_body(model: str) -> bytes:
    """The body of `GET /v1/models/{model}`. Raises `Refusal` 404."""
    if _kind(model) is None:
        raise _not_found(model, "model")
    return msgspec.json.encode(_entry(model))


def _not_found(model: str, param: str | None = None) -> Refusal:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return Refusal(404, message, param=param, code="model_not_found")
