"""Files: kept for as long as the simulator runs, and whole only when they are small.

The content of a larger one comes back as long as it was, filled with one line that names its SHA-256 again and again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from proxy.simulator.endpoint import Asked, Blob, Stamp, Static, object_of
from proxy.simulator.kept import Kept
from proxy.simulator.refusal import Refusal

__all__ = ["File", "Files", "check_purpose", "filling"]

_PURPOSES = frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"})
_LIMIT = 10_000
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class File:
    """One file."""

    id: str
    created: int
    filename: str
    purpose: str
    length: int
    sha256: str
    content: bytes | None

    def shown(self) -> dict[str, object]:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.length,
            "created_at": self.created,
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }

    def pieces(self) -> Iterator[bytes]:
        """Its content, or what stands for it."""
        return iter((self.content,)) if self.content is not None else filling(self.sha256, self.length)


class Files:
    """`/v1/files`."""

    def __init__(self) -> None:
        self._kept: Kept[File] = Kept("File")

    def get(self, name: str) -> File:
        """A file. Raises `Refusal` 404."""
        return self._kept.get(name)

    def add(self, stamp: Stamp, filename: str, purpose: str, content: bytes) -> File:
        """A small file that was made here."""
        return self.keep(stamp, filename, purpose, len(content), hashlib.sha256(content).hexdigest(), content)

    def keep(self, stamp: Stamp, filename: str, purpose: str, length: int, sha256: str, content: bytes | None) -> File:
        """A file of which, it may be, no more is known than length and digest."""
        file = File(f"file-{stamp.serial}", stamp.created, filename, purpose, length, sha256, content)
        self._kept.add(file.id, file)
        return file

    def create(self, asked: Asked) -> Static:
        """`POST /v1/files`."""
        form = asked.needed_form()
        part, purpose = form.file("file"), form.text("purpose")
        check_purpose(purpose)
        if not part.length:
            raise Refusal(400, "The file is empty.", param="file")
        name = part.filename or "file"
        return object_of(self.keep(asked.stamp, name, purpose, part.length, part.sha256, part.content).shown())

    def show_all(self, asked: Asked) -> Static:
        """`GET /v1/files`."""
        purpose = asked.query.get("purpose")
        return self._kept.page(asked.query, File.shown, limit=_LIMIT, only=lambda file: purpose in {None, file.purpose})

    def show(self, asked: Asked) -> Static:
        """`GET /v1/files/{id}`."""
        return object_of(self.get(asked.id).shown())

    def content(self, asked: Asked) -> Blob:
        """`GET /v1/files/{id}/content`."""
        file = self.get(asked.id)
        return Blob(file.pieces, "application/octet-stream", file.length)

    def delete(self, asked: Asked) -> Static:
        """`DELETE /v1/files/{id}`."""
        return object_of({"id": self._kept.remove(asked.id).id, "object": "file", "deleted": True})

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def check_purpose(purpose: str) -> None:
    """Raises `Refusal` for one that does not exist."""
    if purpose not in _PURPOSES:
        raise Refusal(400, f"'{purpose}' is not one of {sorted(_PURPOSES)} - 'purpose'", param="purpose")


def filling(sha256: str, length: int) -> Iterator[bytes]:
    """`length` bytes that stand for a content that was not kept."""
    line = f"sha256 {sha256}\n".encode()
    piece = line * (_PIECE_BYTES // len(line))
    for at in range(0, length, len(piece)):
        yield piece[: length - at]
