"""Forms as `multipart/form-data`, read as they come: fields are kept, of files nothing is.

Read strictly: whatever two readers could understand in two ways is refused, so that the model we look at is the one
upstream will see. The reader of aiohttp takes what others would read in another way (encoded parts, two of a name), and
pulls from a stream that it would have to have for itself; tests hold this one to it. Sources: RFC 7578; RFC 2046, 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from proxy.core.errors import InvalidRequest

__all__ = ["Form", "FormReader"]

_MAX_TEXT_BYTES = 4 * 1024 * 1024
"""Of all fields together; samples of known speakers are the largest there are."""
_MAX_HEAD_BYTES = 8 * 1024
_MAX_PARTS = 256

_CONTENT_TYPE = re.compile(
    r"""multipart/form-data\s*;\s*boundary=(?:"([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])"|"""
    r"""([0-9A-Za-z'+_.-]{1,70}))\s*""",
    re.ASCII | re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}(?:\[[A-Za-z0-9_]{0,32}\])*", re.ASCII)
# ASCII: blanks and letters that are none to other readers would hide a parameter from them.
_DISPOSITION = re.compile(
    r"form-data((?:\s*;\s*[a-z]+\*?=(?:\"(?:[^\"\\]|\\(?!\"))*\"|[^\s\";]+))*)\s*", re.ASCII | re.IGNORECASE
)
_PARAMETER = re.compile(r";\s*([a-z]+\*?)=(?:\"((?:[^\"\\]|\\(?!\"))*)\"|([^\s\";]+))", re.ASCII | re.IGNORECASE)
_CHARSET = re.compile(
    r"charset[\s\d*]*=(?!\s*\"?(?:utf-?8|us-ascii|iso-8859-1|windows-1252)\"?\s*(?:;|$))", re.ASCII | re.IGNORECASE
)
"""One that has ASCII's bytes mean something else; Java's clients call their texts ISO-8859-1."""
_FORMS_CHARSET = "_charset_"
"""The field that names one for all that follow it (RFC 7578, 4.6)."""
_HEADER = re.compile(rb"([A-Za-z0-9-]{1,64}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_AS_IT_STANDS = frozenset({"7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class Form:
    """A form that has come whole."""

    fields: Mapping[str, tuple[str, ...]]
    """Texts by the names of their parts, in the order in which they came."""
    files: frozenset[str]
    """Names of the parts that are files."""
    spans: Mapping[str, tuple[int, int]]
    """Where in the body the text of each field stands, from and to; of several, the last."""
    boundary: bytes

    def one(self, name: str) -> str | None:
        """The text of a field that may stand there once, None where it is absent. Raises `InvalidRequest`."""
        for other in (*self.fields, *self.files):
            if other != name and other.partition("[")[0].lower() == name:
                raise InvalidRequest(f"The form's field '{name}' goes by this name alone.", param=name)
        if name in self.files:
            raise InvalidRequest(f"The form's field '{name}' must be text, not a file.", param=name)
        found = self.fields.get(name, ())
        if len(found) > 1:
            raise InvalidRequest(f"The form has the field '{name}' more than once.", param=name, code="duplicate_key")
        return found[0] if found else None

    def naming(self, model: str) -> Form:
        """The form with a model that is named elsewhere. Raises `InvalidRequest` for one that names another itself."""
        stated = self.one("model")
        if stated and stated != model:
            raise InvalidRequest(
                f"The path names the deployment {model[:256]} and the form the model {stated[:256]}: leave one of them "
                "out, or name the same.",
                param="model",
            )
        return replace(self, fields={**self.fields, "model": (model,)})

    def part(self, name: str, text: str) -> bytes:
        """A part for a field, as it stands at the beginning of the body."""
        return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (
            self.boundary,
            name.encode(),
            text.encode(),
        )


class FormReader:
    """Reads a form from its bytes, however they are cut. Raises `InvalidRequest` for what is not read strictly."""

    __slots__ = ("_at", "_border", "_boundary", "_fields", "_files", "_held", "_name", "_parts", "_spans", "_step",
                 "_text", "_text_at", "_text_bytes")  # fmt: skip

    def __init__(self, content_type: str) -> None:
        found = _CONTENT_TYPE.fullmatch(content_type)
        if found is None:
            raise InvalidRequest("A multipart form needs the content type multipart/form-data, with a boundary only.")
        self._boundary = (found[1] or found[2]).encode()
        self._border = b"\r\n--" + self._boundary
        # The first border stands at the very beginning, without the line end that belongs to all others.
        self._held = bytearray(b"\r\n")
        self._at = -2
        """Of what is held, in the body."""
        self._step = self._begin
        self._name = ""
        self._text: bytearray | None = None
        """Of the field that is being read; None in a file."""
        self._text_at = 0
        self._text_bytes = 0
        self._parts = 0
        self._fields: dict[str, list[str]] = {}
        self._files: set[str] = set()
        self._spans: dict[str, tuple[int, int]] = {}

    def feed(self, data: bytes) -> None:
        """Read on."""
        self._held += data
        while self._step():
            pass

    def finish(self) -> Form:
        """The form, once all was fed. Raises `InvalidRequest` for one that does not end as it should."""
        if self._step != self._end or bytes(self._held) not in {b"", b"\r\n"}:
            raise _malformed("it does not end with its last boundary")
        fields = {name: tuple(texts) for name, texts in self._fields.items()}
        return Form(fields, frozenset(self._files), self._spans, self._boundary)

    def _begin(self) -> bool:
        if len(self._held) < len(self._border):
            return False
        if not self._held.startswith(self._border):
            raise _malformed("it does not begin with its boundary")
        self._drop(len(self._border))
        self._step = self._after_border
        return True

    def _after_border(self) -> bool:
        if len(self._held) < 2:
            return False
        after = bytes(self._held[:2])
        if after not in {b"\r\n", b"--"}:
            raise _malformed("a boundary is followed by something else")
        self._drop(2)
        self._step = self._end if after == b"--" else self._head
        return True

    def _head(self) -> bool:
        end = self._held.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
        if end < 0:
            if len(self._held) >= _MAX_HEAD_BYTES:
                raise _malformed("the head of a part is too long")
            return False
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _malformed(f"it has more than {_MAX_PARTS} parts")
        self._name, is_file = _read_head(bytes(self._held[:end]))
        self._drop(end + 4)
        self._text, self._text_at = (None if is_file else bytearray()), self._at
        self._step = self._content
        return True

    def _content(self) -> bool:
        at = self._held.find(self._border[2:])
        end = at - 2 if at >= 0 else max(0, len(self._held) - len(self._border) + 1)
        if at >= 0 and (end < 0 or not self._held.startswith(b"\r\n", end)):
            # Readers that take any line end, or none, would see a border here.
            raise _malformed("its boundary stands inside of a part")
        if self._text is not None and end:
            self._text_bytes += end
            if self._text_bytes > _MAX_TEXT_BYTES:
                raise _malformed(f"its fields are longer than {_MAX_TEXT_BYTES} bytes together, or a file has no name")
            self._text += self._held[:end]
        if at < 0:
            self._drop(end)
            return False
        self._close(self._at + end)
        self._drop(end + len(self._border))
        self._step = self._after_border
        return True

    def _end(self) -> bool:
        if len(self._held) > 2:
            raise _malformed("something follows its last boundary")
        return False

    def _close(self, end: int) -> None:
        """Keep the part that ends here."""
        if self._text is None:
            self._files.add(self._name)
            return
        try:
            text = self._text.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"The form's field '{self._name}' is not UTF-8.", param=self._name) from None
        self._fields.setdefault(self._name, []).append(text)
        self._spans[self._name] = (self._text_at, end)

    def _drop(self, count: int) -> None:
        del self._held[:count]
        self._at += count


def _read_head(head: bytes) -> tuple[str, bool]:
    """The name of a part, and whether it is a file."""
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None:
            raise _malformed("the head of a part is not understood")
        name = found[1].decode().lower()
        if name in headers:
            raise _malformed(f"a part has two headers {name}")
        try:
            headers[name] = found[2].decode().strip(" \t")
        except UnicodeDecodeError:
            raise _malformed("the head of a part is not UTF-8") from None
    if headers.get("content-transfer-encoding", "binary").lower() not in _AS_IT_STANDS or "content-encoding" in headers:
        raise _malformed("a part is encoded")
    name, is_file = _read_disposition(headers.get("content-disposition", ""))
    if not is_file and _CHARSET.search(headers.get("content-type", "")):
        raise _malformed("a part is not in UTF-8")
    return name, is_file


def _read_disposition(value: str) -> tuple[str, bool]:
    found = _DISPOSITION.fullmatch(value)
    if found is None:
        raise _malformed("a part has no Content-Disposition that is understood")
    parameters: dict[str, str] = {}
    for each in _PARAMETER.finditer(found[1]):
        name = each[1].lower()
        if name in parameters:
            raise _malformed(f"a part has two parameters {name}")
        parameters[name] = each[2] if each[2] is not None else each[3]
    if "name*" in parameters or _NAME.fullmatch(parameters.get("name", "")) is None:
        raise _malformed("a part has no name that is understood")
    if parameters["name"] == _FORMS_CHARSET:
        raise _malformed("it names a charset; it has to be in UTF-8")
    return parameters["name"], "filename" in parameters or "filename*" in parameters


def _malformed(what: str) -> InvalidRequest:
    return InvalidRequest(f"The multipart form could not be read: {what}.")
