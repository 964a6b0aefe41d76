"""Answers that are kept: responses unless they say otherwise, chat completions when they ask for it.

What is kept is request and answer as they were computed; it is written again whenever it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Answer, Asked, Frame, Stamp, Static, object_of
from proxy.simulator.heads import JSON
from proxy.simulator.kept import Kept, page_of
from proxy.simulator.multipart import KEPT_BYTES
from proxy.simulator.refusal import Refusal

__all__ = ["StoredChats", "StoredResponses"]

_LIMIT = 20


class _Wish(msgspec.Struct, frozen=True):
    store: bool | None = None


class _Metadata(msgspec.Struct, frozen=True):
    metadata: dict[str, str] | None


_WISH = msgspec.json.Decoder(_Wish)
_METADATA = msgspec.json.Decoder(_Metadata)


@dataclass(slots=True)
class _Stored:
    body: bytes
    answer: Answer
    stamp: Stamp
    changed: dict[str, object] = field(default_factory=dict)
    """Members that were set since."""

    def asked(self) -> dict[str, Any]:
        """The request."""
        found: dict[str, Any] = msgspec.json.decode(self.body)
        return found

    def shown(self) -> dict[str, Any]:
        """The answer as the API shows it."""
        answered: dict[str, Any] = msgspec.json.decode(self.answer.body(self.stamp, usage=True))
        return answered | self.changed


def _wanted(body: bytes) -> bool | None:
    """Whether a request, which was answered, says that it be kept."""
    return decode(_WISH, body).store if b'"store"' in body else None


class StoredChats:
    """`/v1/chat/completions/{id}`."""

    def __init__(self) -> None:
        self._kept: Kept[_Stored] = Kept("ChatCompletion")

    def note(self, asked: Asked, answer: Answer) -> None:
        """Keep an answer, where the request asks for it."""
        if len(asked.body) <= KEPT_BYTES and _wanted(asked.body):
            self._kept.add(f"chatcmpl-{asked.stamp.serial}", _Stored(asked.body, answer, asked.stamp))

    def show_all(self, asked: Asked) -> Static:
        """`GET /v1/chat/completions`."""
        model = asked.query.get("model")
        return self._kept.page(
            asked.query,
            self._shown,
            limit=_LIMIT,
            order="asc",
            only=lambda stored: model in {None, stored.answer.model, stored.asked()["model"]},
        )

    def show(self, asked: Asked) -> Static:
        """`GET /v1/chat/completions/{id}`."""
        return object_of(self._shown(self._kept.get(asked.id)))

    def change(self, asked: Asked) -> Static:
        """`POST /v1/chat/completions/{id}`: other metadata."""
        stored = self._kept.get(asked.id)
        stored.changed["metadata"] = decode(_METADATA, asked.body).metadata
        return object_of(self._shown(stored))

    def delete(self, asked: Asked) -> Static:
        """`DELETE /v1/chat/completions/{id}`."""
        self._kept.remove(asked.id)
        return object_of({"object": "chat.completion.deleted", "id": asked.id, "deleted": True})

    def messages(self, asked: Asked) -> Static:
        """`GET /v1/chat/completions/{id}/messages`."""
        said = self._kept.get(asked.id).asked()["messages"]
        shown = [{"id": f"{asked.id}-{number}", **message} for number, message in enumerate(said)]
        return page_of(shown, asked.query, limit=_LIMIT, order="asc")

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    @staticmethod
    def _shown(stored: _Stored) -> dict[str, object]:
        return {"metadata": stored.asked().get("metadata") or {}, **stored.shown()}


class StoredResponses:
    """`/v1/responses/{id}`."""

    def __init__(self) -> None:
        self._kept: Kept[_Stored] = Kept("Response")

    def note(self, asked: Asked, answer: Answer) -> None:
        """Keep an answer, unless the request says otherwise."""
        if len(asked.body) <= KEPT_BYTES and _wanted(asked.body) is not False:
            self._kept.add(f"resp_{asked.stamp.serial}", _Stored(asked.body, answer, asked.stamp))

    def show(self, asked: Asked) -> Answer:
        """`GET /v1/responses/{id}`: as one object, or all of its events again, or those after a number."""
        stored = self._kept.get(asked.id)
        if asked.query.get("stream") != "true":
            return object_of(stored.shown())
        after = asked.query.get("starting_after", "-1")
        if not after.removeprefix("-").isdecimal():
            raise Refusal(400, "Invalid value for 'starting_after': expected a number.", param="starting_after")
        return _Again(stored, int(after) + 1)

    def delete(self, asked: Asked) -> Static:
        """`DELETE /v1/responses/{id}`."""
        self._kept.remove(asked.id)
        return object_of({"id": asked.id, "object": "response", "deleted": True})

    def cancel(self, asked: Asked) -> Static:
        """`POST /v1/responses/{id}/cancel`, for what runs in the background."""
        stored = self._kept.get(asked.id)
        if not stored.asked().get("background"):
            raise Refusal(400, "Cannot cancel a synchronous response.", param="id")
        stored.changed["status"] = "cancelled"
        return object_of(stored.shown())

    def input_items(self, asked: Asked) -> Static:
        """`GET /v1/responses/{id}/input_items`."""
        given = self._kept.get(asked.id).asked().get("input") or []
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        serial = asked.id.removeprefix("resp_")
        shown = [_item(f"msg_{number}{serial}", item) for number, item in enumerate(items)]
        return page_of(shown, asked.query, limit=_LIMIT, most=100)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def _item(name: str, item: dict[str, Any]) -> dict[str, object]:
    content = item.get("content")
    if isinstance(content, str):
        content = [{"type": "input_text" if item.get("role") != "assistant" else "output_text", "text": content}]
    told = {} if content is None else {"content": content}
    return {"id": name, "type": "message", "status": "completed", **item, **told}


@dataclass(frozen=True, slots=True)
class _Again:
    """The events of a response that was kept, from the one with number `first`; see `endpoint.Answer`."""

    stored: _Stored
    first: int
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    limit_tokens: int = 0
    stream: bool = True
    pauses: int = 0
    content_type: str = JSON

    @property
    def terminator(self) -> bytes:
        """The last event of a stream."""
        return self.stored.answer.terminator

    @property
    def error_event(self) -> bytes:
        """How an error in the middle of a stream is told."""
        return self.stored.answer.error_event

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:  # noqa: ARG002 - the stamp is that of the first time
        """The plain form."""
        return self.stored.answer.body(self.stored.stamp, usage=usage)

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:  # noqa: ARG002 - as above
        """The events, at once and without counting their tokens again."""
        for number, frame in enumerate(self.stored.answer.frames(self.stored.stamp, usage=usage)):
            if number >= self.first:
                yield replace(frame, tokens=0)
