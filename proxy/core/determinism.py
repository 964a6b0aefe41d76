"""Whether a request may be answered twice with one answer.

Source of the names: OpenAI's API specification, `CreateChatCompletionRequest`; those of other upstreams that speak its
protocol are marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxy.core.strict_json import JsonObject

__all__ = ["LOCAL_TOOLS", "WAIVABLE", "completion_nondeterminism", "is_searching", "nondeterminism"]

WAIVABLE = frozenset({"content", "image_url", "temperature"})
"""Reasons that do not hold for a team whose cache mode is `all`: another answer would be as good as the one kept.

Every other one is about state, or about the world of the moment, and holds for all.
"""

_STATEFUL = (
    "store", "previous_response_id", "conversation", "background", "web_search_options",
    "data_sources",  # Azure
    "plugins",  # OpenRouter
    "search_parameters",  # xAI
)  # fmt: skip
_STATEFUL_NAMES = frozenset(_STATEFUL)
LOCAL_TOOLS = ("function", "custom")
"""Tools the client runs itself; every other kind is run by upstream and sees the world of the moment.

Not a set: what a client wrote for a kind may be nothing that can be looked up in one.
"""
_SEARCHING = re.compile("-search|deep-research|:online")
"""Parts of the names of models that look things up unasked (`gpt-4o-search-preview`; `:online` is OpenRouter's)."""
_SELF_CONTAINED = ("text", "refusal", "input_audio")
_ENCLOSING = ("file", "image_url")
"""Kinds of content that say all they mean, and those that may name a place instead."""


def nondeterminism(body: JsonObject) -> str | None:
    """Name what keeps this request from being answered twice with one answer, or None when nothing does.

    A request is taken as deterministic when `temperature` or `top_p` is 0 or a `seed` is given. OpenAI itself calls
    `seed` best effort, so this is a choice of the product. What cannot be waived is named before what can.
    """
    stateful = _stateful(body)
    if stateful is not None:
        return stateful
    if "audio" in (body.get("modalities") or ()) or body.get("audio") is not None:
        return "audio"
    for tool in body.get("tools") or ():
        if not isinstance(tool, dict) or tool.get("type") not in LOCAL_TOOLS:
            return "tools"
    if is_searching(body):
        return "model"
    referring = set(_referring(body))
    return min(referring, key=lambda reason: (reason in WAIVABLE, reason)) if referring else _sampled(body)


def completion_nondeterminism(body: JsonObject) -> str | None:
    """Say it of a legacy completion, whose prompt refers to nothing."""
    return _stateful(body) or ("model" if is_searching(body) else _sampled(body))


def is_searching(body: JsonObject) -> bool:
    """Whether the model looks things up unasked."""
    return _SEARCHING.search(str(body.get("model"))) is not None


def _stateful(body: JsonObject) -> str | None:
    if _STATEFUL_NAMES.isdisjoint(body):
        return None
    # Not `if body.get(name)`: an empty object asks for it too, with every option at its default.
    return next((name for name in _STATEFUL if body.get(name) is not None and body[name] is not False), None)


def _sampled(body: JsonObject) -> str | None:
    if body.get("temperature") == 0 or body.get("top_p") == 0 or body.get("seed") is not None:
        return None
    return "temperature"


def _referring(body: JsonObject) -> Iterator[str]:
    """Name what messages refer to in place of saying it: it may be gone or another by the next time."""
    for message in body.get("messages") or ():
        if message.get("audio") is not None:
            yield "audio"  # an answer of before, which upstream keeps for an hour or so
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for part in content:
            kind = part.get("type")
            if kind in _ENCLOSING and not _is_enclosed(kind, part.get(kind)):
                yield kind
            elif kind not in (*_ENCLOSING, *_SELF_CONTAINED):
                yield "content"


def _is_enclosed(kind: str, said: object) -> bool:
    """Whether a file or an image is in the request itself, not somewhere it only names."""
    if not isinstance(said, dict):
        return False
    if kind == "file":
        return bool(said.get("file_data")) and not said.get("file_id")
    return str(said.get("url"))[:5].lower() == "data:"
