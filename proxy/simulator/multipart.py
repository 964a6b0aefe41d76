"""Forms as `multipart/form-data`, read as they come: small parts are kept whole, of large ones length and digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from email.message import Message
from enum import Enum, auto

from proxy.simulator.refusal import Refusal

__all__ = ["KEPT_BYTES", "Form", "FormReader", "Part"]

KEPT_BYTES = 256 * 1024
"""The longest part whose content is kept."""
_MAX_HEAD_BYTES = 16 * 1024
_MAX_PARTS = 1_000


class Part:
    """One part of a form: a field, or a file when it has a name of its own."""

    def __init__(self, name: str, filename: str | None, content_type: str) -> None:
        self.name = name
        self.filename = filename
        self.content_type = content_type
        self.length = 0
        self._digest = hashlib.sha256()
        self._kept: bytearray | None = bytearray()

    def take(self, data: bytes | bytearray) -> None:
        """Add to it."""
        self.length += len(data)
        self._digest.update(data)
        if self._kept is not None:
            self._kept += data
            if self.length > KEPT_BYTES:
                self._kept = None

    @property
    def sha256(self) -> str:
        """Of all of it, in hexadecimal digits."""
        return self._digest.hexdigest()

    @property
    def content(self) -> bytes | None:
        """All of it; None when it was too long to be kept."""
        return None if self._kept is None else bytes(self._kept)


@dataclass(slots=True)
class Form:
    """Fields and files by their names; `name[]` counts as `name`."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[Part]] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Take a part that is complete. Raises `Refusal` for a field that is no text, or too long for one."""
        name = part.name.removesuffix("[]")
        if part.filename is not None:
            self.files.setdefault(name, []).append(part)
            return
        try:
            text = (part.content or b"").decode()
        except UnicodeDecodeError:
            text = ""
        if part.length and not text:
            raise Refusal(400, f"Invalid value for '{name}': expected text.", param=name)
        self.fields.setdefault(name, []).append(text)

    def text(self, name: str, default: str | None = None) -> str:
        """The last value of a field. Raises `Refusal` when there is none, and no default."""
        found = self.fields.get(name, [default] if default is not None else [])
        if not found:
            raise _missing(name)
        return found[-1]

    def file(self, name: str) -> Part:
        """The last file of that name. Raises `Refusal` when there is none."""
        found = self.files.get(name)
        if not found:
            raise _missing(name)
        return found[-1]


def _missing(name: str) -> Refusal:
    return Refusal(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


class _At(Enum):
    CONTENT = auto()
    BORDER = auto()
    HEAD = auto()
    END = auto()


class FormReader:
    """Reads a form from its bytes, however they are cut. Raises `Refusal` 400 for one that is malformed."""

    def __init__(self, content_type: str) -> None:
        boundary = _parameters("Content-Type", content_type).get_param("boundary")
        if not isinstance(boundary, str) or not 1 <= len(boundary) <= 200:
            raise Refusal(400, "A multipart body needs a boundary.")
        self._border = b"\r\n--" + boundary.encode("latin-1", "replace")
        # The first border may stand at the very beginning, without the line break that belongs to all others.
        self._held = bytearray(b"\r\n")
        self._at = _At.CONTENT
        self._part: Part | None = None
        self._parts = 0
        self._form = Form()

    def feed(self, data: bytes) -> None:
        """Read on."""
        self._held += data
        steps = {_At.CONTENT: self._content, _At.BORDER: self._after_border, _At.HEAD: self._head, _At.END: self._rest}
        while steps[self._at]():
            pass

    def finish(self) -> Form:
        """The form, once all was fed."""
        if self._at is not _At.END:
            raise Refusal(400, "The multipart body ends too early.")
        return self._form

    def _content(self) -> bool:
        at = self._held.find(self._border)
        whole = at >= 0
        end = at if whole else max(0, len(self._held) - len(self._border) + 1)
        if self._part is not None and end:
            self._part.take(self._held[:end])
        del self._held[: end + (len(self._border) if whole else 0)]
        if whole:
            if self._part is not None:
                self._form.add(self._part)
            self._part, self._at = None, _At.BORDER
        return whole

    def _after_border(self) -> bool:
        if len(self._held) < 2:
            return False
        after = bytes(self._held[:2])
        if after not in {b"--", b"\r\n"}:
            raise Refusal(400, "A boundary of the multipart body is not followed by a new line.")
        del self._held[:2]
        self._at = _At.END if after == b"--" else _At.HEAD
        return True

    def _head(self) -> bool:
        at = self._held.find(b"\r\n\r\n")
        if at > _MAX_HEAD_BYTES or (at < 0 and len(self._held) > _MAX_HEAD_BYTES) or self._parts >= _MAX_PARTS:
            raise Refusal(400, "The multipart body has too many parts, or one with too many headers.")
        if at < 0:
            return False
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (
                line.partition(":") for line in bytes(self._held[:at]).decode("utf-8", "replace").split("\r\n")
            )
        }
        del self._held[: at + 4]
        disposition = _parameters("Content-Disposition", headers.get("content-disposition", ""))
        name = disposition.get_param("name", header="Content-Disposition")
        if not isinstance(name, str):
            raise Refusal(400, "A part of the multipart body has no name.")
        self._part = Part(name, disposition.get_filename(), headers.get("content-type", "application/octet-stream"))
        self._parts += 1
        self._at = _At.CONTENT
        return True

    def _rest(self) -> bool:
        self._held.clear()
        return False


def _parameters(header: str, value: str) -> Message:
    message = Message()
    message[header] = value.replace("\r", " ").replace("\n", " ")
    return message
