"""Another model's name in a request, and every other byte as the client wrote it."""

from __future__ import annotations

import json

from proxy.core.strict_json import member_spans

__all__ = ["with_model"]


def with_model(raw: bytes, model: str) -> bytes:
    """Return the JSON object `raw`, which has been parsed strictly, with another value of `model`, or with one."""
    text, name = raw.decode("utf-8"), json.dumps(model, ensure_ascii=False)
    spans = member_spans(text)
    if "model" not in spans:
        inside = text.index("{") + 1
        return f'{text[:inside]}"model":{name}{"," if spans else ""}{text[inside:]}'.encode()
    _, start, end = spans["model"]
    return f"{text[:start]}{name}{text[end:]}".encode()
