"""Uploads: files that come in parts, of which no more than the first few hundred KiB are kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Asked, Stamp, Static, object_of
from proxy.simulator.files import File, Files, check_purpose
from proxy.simulator.kept import Kept
from proxy.simulator.multipart import KEPT_BYTES, Part
from proxy.simulator.refusal import Refusal

__all__ = ["Uploads"]

_LIFE_SECONDS = 3_600
_MOST_BYTES = 8 * 1024**3
_MOST_PART_BYTES = 64 * 1024**2


class _Create(msgspec.Struct, frozen=True):
    bytes: Annotated[int, msgspec.Meta(ge=1, le=_MOST_BYTES)]
    filename: str
    mime_type: str
    purpose: str


class _Complete(msgspec.Struct, frozen=True):
    part_ids: list[str]
    md5: str | None = None


@dataclass(slots=True)
class _Upload:
    id: str
    asked: _Create
    created: int
    status: str = "pending"
    parts: dict[str, Part] = field(default_factory=dict)
    file: File | None = None

    def shown(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.asked.bytes,
            "created_at": self.created,
            "expires_at": self.created + _LIFE_SECONDS,
            "filename": self.asked.filename,
            "purpose": self.asked.purpose,
            "status": self.status,
            "file": self.file.shown() if self.file else None,
        }


_CREATE = msgspec.json.Decoder(_Create)
_COMPLETE = msgspec.json.Decoder(_Complete)


class Uploads:
    """`/v1/uploads`."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._kept: Kept[_Upload] = Kept("Upload")

    def create(self, asked: Asked) -> Static:
        """`POST /v1/uploads`."""
        wanted = decode(_CREATE, asked.body)
        check_purpose(wanted.purpose)
        upload = _Upload(f"upload_{asked.stamp.serial}", wanted, asked.stamp.created)
        self._kept.add(upload.id, upload)
        return object_of(upload.shown())

    def add_part(self, asked: Asked) -> Static:
        """`POST /v1/uploads/{id}/parts`."""
        upload = self._pending(asked.id)
        part = asked.needed_form().file("data")
        if part.length > _MOST_PART_BYTES:
            raise Refusal(400, f"A part must not be larger than {_MOST_PART_BYTES} bytes.", param="data")
        name = f"part_{asked.stamp.serial}"
        upload.parts[name] = part
        created = asked.stamp.created
        return object_of({"id": name, "object": "upload.part", "created_at": created, "upload_id": upload.id})

    def complete(self, asked: Asked) -> Static:
        """`POST /v1/uploads/{id}/complete`."""
        upload, wanted = self._pending(asked.id), decode(_COMPLETE, asked.body)
        if unknown := [name for name in wanted.part_ids if name not in upload.parts]:
            raise Refusal(400, f"No such part: {unknown[0]}", param="part_ids")
        parts = [upload.parts[name] for name in wanted.part_ids]
        length = sum(part.length for part in parts)
        if length != upload.asked.bytes:
            raise Refusal(
                400, f"The parts have {length} bytes, and {upload.asked.bytes} were announced.", param="bytes"
            )
        upload.file = self._joined(upload, parts, length, wanted.md5, asked.stamp)
        upload.status = "completed"
        upload.parts.clear()
        return object_of(upload.shown())

    def cancel(self, asked: Asked) -> Static:
        """`POST /v1/uploads/{id}/cancel`."""
        upload = self._pending(asked.id)
        upload.status = "cancelled"
        upload.parts.clear()
        return object_of(upload.shown())

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def _pending(self, name: str) -> _Upload:
        upload = self._kept.get(name)
        if upload.status != "pending":
            raise Refusal(400, f"Upload {name} is {upload.status}.", param="id")
        return upload

    def _joined(self, upload: _Upload, parts: list[Part], length: int, md5: str | None, stamp: Stamp) -> File:
        contents = [part.content for part in parts if part.content is not None]
        name, purpose = upload.asked.filename, upload.asked.purpose
        if len(contents) < len(parts) or length > KEPT_BYTES:
            # The digest of the whole cannot be told from those of its parts: it gets one that follows from them.
            digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
            return self._files.keep(stamp, name, purpose, length, digest, None)
        content = b"".join(contents)
        if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.lower():
            raise Refusal(400, "The MD5 checksum does not match.", param="md5")
        return self._files.add(stamp, name, purpose, content)
