"""Another model's name in a request, and every other byte as the client wrote it."""

from __future__ import annotations

import json

from proxy.core.strict_json import member_spans

__all__ = ["with_model"]


def with_model(raw: bytes, model: str) -> bytes:
    """Return the JSON object `raw`, which has been parsed strictly, with the value of its `model` replaced."""
    text = raw.decode("utf-8")
    _, start, end = member_spans(text)["model"]
    return f"{text[:start]}{json.dumps(model, ensure_ascii=False)}{text[end:]}".encode()
