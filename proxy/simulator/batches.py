"""Batches: a file of requests, answered all at once when the batch is first looked at again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Asked, Endpoint, Stamp, Static, object_of
from proxy.simulator.files import File, Files
from proxy.simulator.kept import Kept
from proxy.simulator.refusal import Refusal
from proxy.simulator.words import digest_of

__all__ = ["Batches"]

_LIFE_SECONDS = 24 * 3_600
_LIMIT = 20
_OPEN = frozenset({"validating", "in_progress"})


class _Create(msgspec.Struct, frozen=True):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


class _Line(msgspec.Struct, frozen=True):
    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


@dataclass(slots=True)
class _Batch:
    id: str
    asked: _Create
    stamp: Stamp
    source: File
    status: str = "validating"
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    files: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    def shown(self) -> dict[str, object]:
        events = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.asked.endpoint,
            "errors": None,
            "input_file_id": self.asked.input_file_id,
            "completion_window": self.asked.completion_window,
            "status": self.status,
            "output_file_id": self.files.get("output"),
            "error_file_id": self.files.get("error"),
            "created_at": self.stamp.created,
            **{f"{event}_at": self.times.get(event) for event in events},
            "expires_at": self.stamp.created + _LIFE_SECONDS,
            "request_counts": self.counts,
            "metadata": self.asked.metadata,
        }


_CREATE = msgspec.json.Decoder(_Create)
_LINE = msgspec.json.Decoder(_Line)


class Batches:
    """`/v1/batches`; `endpoints`: what may be asked in one, by its path."""

    def __init__(self, files: Files, endpoints: Mapping[str, Endpoint]) -> None:
        self._files = files
        self._endpoints = endpoints
        self._kept: Kept[_Batch] = Kept("Batch")

    def create(self, asked: Asked) -> Static:
        """`POST /v1/batches`."""
        wanted = decode(_CREATE, asked.body)
        if wanted.endpoint not in self._endpoints:
            raise Refusal(400, f"Invalid value: '{wanted.endpoint}'.", param="endpoint", code="invalid_value")
        source = self._files.get(wanted.input_file_id)
        batch = _Batch(f"batch_{asked.stamp.serial}", wanted, asked.stamp, source)
        self._kept.add(batch.id, batch)
        return object_of(batch.shown())

    def show_all(self, asked: Asked) -> Static:
        """`GET /v1/batches`."""
        return self._kept.page(asked.query, _Batch.shown, limit=_LIMIT)

    def show(self, asked: Asked) -> Static:
        """`GET /v1/batches/{id}`: the first time, all of its requests are answered."""
        batch = self._kept.get(asked.id)
        if batch.status == "validating":
            self._run(batch)
        elif batch.status == "cancelling":
            batch.status = "cancelled"
            batch.times["cancelled"] = asked.stamp.created
        return object_of(batch.shown())

    def cancel(self, asked: Asked) -> Static:
        """`POST /v1/batches/{id}/cancel`."""
        batch = self._kept.get(asked.id)
        if batch.status not in _OPEN:
            raise Refusal(409, f"Cannot cancel a batch with status '{batch.status}'.", param="id")
        batch.status = "cancelling"
        batch.times["cancelling"] = asked.stamp.created
        return object_of(batch.shown())

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def _run(self, batch: _Batch) -> None:
        lines = [line for line in (batch.source.content or b"").splitlines() if line.strip()]
        told: dict[str, list[bytes]] = {"output": [], "error": []}
        for number, line in enumerate(lines):
            kind, written = self._answer(batch, number, line)
            told[kind].append(written)
        for kind, written_lines in told.items():
            if written_lines:
                stamp = Stamp(_serial(batch.id, kind), batch.stamp.created)
                name = f"{batch.id}_{kind}.jsonl"
                batch.files[kind] = self._files.add(stamp, name, "batch_output", b"\n".join(written_lines) + b"\n").id
        batch.status = "completed"
        batch.counts = {"total": len(lines), "completed": len(told["output"]), "failed": len(told["error"])}
        batch.times |= dict.fromkeys(("in_progress", "finalizing", "completed"), batch.stamp.created)

    def _answer(self, batch: _Batch, number: int, line: bytes) -> tuple[str, bytes]:
        """Which file one line's answer belongs to, and its line there."""
        stamp = Stamp(_serial(batch.id, number), batch.stamp.created)
        custom_id, kind, status = None, "output", 200
        try:
            asked = decode(_LINE, line)
            custom_id = asked.custom_id
            body = self._endpoints[batch.asked.endpoint](bytes(asked.body)).body(stamp, usage=True)
        except Refusal as refusal:
            kind, status, body = "error", refusal.status, refusal.body()
        response = {"status_code": status, "request_id": f"req_{stamp.serial}", "body": msgspec.Raw(body)}
        written = {"id": f"batch_req_{stamp.serial}", "custom_id": custom_id, "response": response, "error": None}
        return kind, msgspec.json.encode(written)


def _serial(*parts: object) -> str:
    return digest_of(*parts).hex()[:29]
