"""What the simulated upstream answers: method and path, and the operation behind them. This is the table of the server.

`{}` in a path stands for one id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxy.simulator.batches import Batches
from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat import chat_endpoint
from proxy.simulator.completions import completions_endpoint
from proxy.simulator.embeddings import embeddings_endpoint
from proxy.simulator.endpoint import Answer, Asked, Endpoint, Operation, Static, of_body
from proxy.simulator.files import Files
from proxy.simulator.images import edits_operation, generations_endpoint, variations_operation
from proxy.simulator.models import list_body, model_body
from proxy.simulator.moderations import moderations_endpoint
from proxy.simulator.refusal import Refusal
from proxy.simulator.responses import input_tokens_endpoint, responses_endpoint
from proxy.simulator.speech import speech_operation
from proxy.simulator.stored import StoredChats, StoredResponses
from proxy.simulator.transcripts import transcriptions_operation, translations_operation
from proxy.simulator.uploads import Uploads

__all__ = ["Routes"]

_ID = "{}"
_CHAT, _RESPONSES = "/v1/chat/completions", "/v1/responses"


class Routes:
    """The table, and what the account behind it keeps."""

    def __init__(self, behaviour: Behaviour) -> None:
        asked_by_body: dict[str, Endpoint] = {
            _CHAT: chat_endpoint(behaviour),
            "/v1/completions": completions_endpoint(behaviour),
            "/v1/embeddings": embeddings_endpoint(behaviour),
            "/v1/moderations": moderations_endpoint(behaviour),
            _RESPONSES: responses_endpoint(behaviour),
        }
        self._files = Files()
        self._uploads = Uploads(self._files)
        self._batches = Batches(self._files, asked_by_body)
        self._chats = StoredChats()
        self._responses = StoredResponses()
        models = Static(list_body())
        table: Mapping[tuple[str, str], Operation] = {
            **{("POST", path): of_body(endpoint) for path, endpoint in asked_by_body.items()},
            ("POST", "/v1/responses/input_tokens"): of_body(input_tokens_endpoint),
            ("GET", "/v1/models"): lambda _: models,
            ("GET", "/v1/models/{}"): lambda asked: Static(model_body(asked.id)),
            ("POST", "/v1/images/generations"): of_body(generations_endpoint(behaviour)),
            ("POST", "/v1/images/edits"): edits_operation(behaviour),
            ("POST", "/v1/images/variations"): variations_operation(behaviour),
            ("POST", "/v1/audio/speech"): speech_operation(behaviour),
            ("POST", "/v1/audio/transcriptions"): transcriptions_operation(behaviour),
            ("POST", "/v1/audio/translations"): translations_operation(behaviour),
            **self._kept(),
        }
        self._exact = {key: operation for key, operation in table.items() if _ID not in key[1]}
        self._patterns = [
            (method, re.compile(re.escape(path).replace(re.escape(_ID), "([^/]+)")), operation)
            for (method, path), operation in table.items()
            if _ID in path
        ]

    def _kept(self) -> dict[tuple[str, str], Operation]:
        """What leads to things that are kept."""
        files, uploads, batches = self._files, self._uploads, self._batches
        chats, responses = self._chats, self._responses
        return {
            ("POST", "/v1/files"): files.create,
            ("GET", "/v1/files"): files.show_all,
            ("GET", "/v1/files/{}"): files.show,
            ("DELETE", "/v1/files/{}"): files.delete,
            ("GET", "/v1/files/{}/content"): files.content,
            ("POST", "/v1/uploads"): uploads.create,
            ("POST", "/v1/uploads/{}/parts"): uploads.add_part,
            ("POST", "/v1/uploads/{}/complete"): uploads.complete,
            ("POST", "/v1/uploads/{}/cancel"): uploads.cancel,
            ("POST", "/v1/batches"): batches.create,
            ("GET", "/v1/batches"): batches.show_all,
            ("GET", "/v1/batches/{}"): batches.show,
            ("POST", "/v1/batches/{}/cancel"): batches.cancel,
            ("GET", _CHAT): chats.show_all,
            ("GET", f"{_CHAT}/{{}}"): chats.show,
            ("POST", f"{_CHAT}/{{}}"): chats.change,
            ("DELETE", f"{_CHAT}/{{}}"): chats.delete,
            ("GET", f"{_CHAT}/{{}}/messages"): chats.messages,
            ("GET", f"{_RESPONSES}/{{}}"): responses.show,
            ("DELETE", f"{_RESPONSES}/{{}}"): responses.delete,
            ("POST", f"{_RESPONSES}/{{}}/cancel"): responses.cancel,
            ("GET", f"{_RESPONSES}/{{}}/input_items"): responses.input_items,
        }

    def find(self, method: str, path: str) -> tuple[Operation, tuple[str, ...]]:
        """The operation of a path, and the ids in it. Raises `Refusal` 404."""
        if operation := self._exact.get((method, path)):
            return operation, ()
        for asked_with, pattern, operation in self._patterns:
            if asked_with == method and (match := pattern.fullmatch(path)):
                return operation, match.groups()
        raise Refusal(404, f"Invalid URL ({method} {path})")

    def note(self, path: str, asked: Asked, answer: Answer) -> None:
        """Keep an answer, where the API keeps such answers."""
        if path == _CHAT:
            self._chats.note(asked, answer)
        elif path == _RESPONSES:
            self._responses.note(asked, answer)

    def clear(self) -> None:
        """Forget all that is kept."""
        for kept in (self._files, self._uploads, self._batches, self._chats, self._responses):
            kept.clear()
