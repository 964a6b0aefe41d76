"""A model that is named by the path, as Azure's SDKs do it, and by the body, as OpenAI's do."""

from __future__ import annotations

import msgspec

from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import JsonObject

__all__ = ["with_deployment"]

_SHOWN_CHARACTERS = 256


def with_deployment(body: JsonObject, raw: bytes, deployment: str) -> tuple[JsonObject, bytes]:
    """The body, and the bytes it came as, with `deployment` for a model where they name none.

    All else of the bytes stays as it came. Raises `InvalidRequest` for a body that names another model.
    """
    stated = body.get("model")
    if "model" not in body:
        inside = raw.index(b"{") + 1
        member = b'"model":' + msgspec.json.encode(deployment) + (b"," if body else b"")
        return {"model": deployment, **body}, raw[:inside] + member + raw[inside:]
    if isinstance(stated, str) and stated != deployment:
        raise InvalidRequest(
            f"The path names the deployment {deployment[:_SHOWN_CHARACTERS]} and the body the model "
            f"{stated[:_SHOWN_CHARACTERS]}: leave one of them out, or name the same.",
            param="model",
        )
    return body, raw
