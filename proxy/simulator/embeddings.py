"""Embeddings: a vector of length one that follows from model, seed and input alone."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Annotated, Literal

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Endpoint
from proxy.simulator.inputs import Inputs, each_of, tokens_of
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.plain_answer import PlainAnswer
from proxy.simulator.words import digest_of

__all__ = ["embeddings_endpoint", "vector"]

_DIMENSIONS = {"text-embedding-3-large": 3_072}
_USUAL_DIMENSIONS = 1_536


class _Request(msgspec.Struct, frozen=True):
    model: str
    input: Inputs
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=3_072)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


_DECODER = msgspec.json.Decoder(_Request)


def embeddings_endpoint(behaviour: Behaviour) -> Endpoint:
    """`POST /v1/embeddings`."""

    def endpoint(body: bytes) -> PlainAnswer:
        request = decode(_DECODER, body)
        model = resolve(request.model, ModelKind.EMBEDDING)
        inputs = each_of(request.input, "input")
        dimensions = request.dimensions or _DIMENSIONS.get(model, _USUAL_DIMENSIONS)
        vectors = [vector(digest_of(behaviour.seed, model, each), dimensions) for each in inputs]
        written = [_base64(each) for each in vectors] if request.encoding_format == "base64" else vectors
        data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(written)]
        tokens = sum(map(tokens_of, inputs))
        return PlainAnswer(
            model=model,
            input_tokens=tokens,
            write=lambda _: {"object": "list", "data": data, "model": model},
            usage={"prompt_tokens": tokens, "total_tokens": tokens},
        )

    return endpoint


def vector(digest: bytes, dimensions: int) -> list[float]:
    """A vector of length one, its members numbers of 32 bits."""
    raw = hashlib.shake_256(digest).digest(2 * dimensions)
    members = [number / 32_768 for number in struct.unpack(f"<{dimensions}h", raw)]
    length = math.sqrt(sum(member * member for member in members)) or 1.0
    return list(struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(each / length for each in members))))


def _base64(members: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(members)}f", *members)).decode()
