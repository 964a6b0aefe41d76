"""Forms are read strictly, however they are cut, and as aiohttp's own reader reads them."""

import asyncio
import random

import pytest
from aiohttp import MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import InvalidRequest
from proxy.core.multipart import Form, FormReader

BOUNDARY = "----form7"
NAMES = st.sampled_from(["model", "prompt", "file", "image[]", "stream", "timestamp_granularities[]"])
# What looks like a border, or like half of one, is the hard part of it.
CONTENT = st.lists(
    st.binary(max_size=12) | st.sampled_from([b"\r\n", b"\r", b"--", b"\r\n--", b"\r\n------form", b"------form7"]),
    max_size=6,
).map(b"".join)


def part(name: str, content: bytes | str, filename: str | None = None, extra: str = "") -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    content = content if isinstance(content, bytes) else content.encode()
    return f'Content-Disposition: form-data; name="{name}"{named}\r\n{extra}\r\n'.encode() + content


def form(*parts: bytes, boundary: str = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    border = f"--{boundary}".encode()
    return b"".join(border + b"\r\n" + each + b"\r\n" for each in parts) + border + end


def read(body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}", cut: int = 0) -> Form:
    reader = FormReader(content_type)
    size = cut or len(body) or 1
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
    return reader.finish()


def refused(body: bytes, **how: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(body, **how)
    return caught.value


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 0])
def test_the_model_is_found_wherever_it_stands(cut):
    audio = random.Random(7).randbytes(5_000) + b"\r\n------form"  # a border, almost
    body = form(part("file", audio, "a.mp3", "Content-Type: audio/mpeg\r\n"), part("model", "whisper-1"))
    got = read(body, cut=cut)
    assert (got.one("model"), got.files, got.fields) == ("whisper-1", {"file"}, {"model": ("whisper-1",)})
    start, end = got.spans["model"]
    assert body[start:end] == b"whisper-1"


def test_what_stands_in_a_file_is_no_field():
    inner = form(part("model", "gpt-4o-transcribe"), boundary="other")
    got = read(form(part("file", inner, "a"), part("model", "whisper-1")))
    assert got.one("model") == "whisper-1"


async def _by_aiohttp(body: bytes) -> list[tuple[str, bool, bytes]]:
    stream = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    stream.feed_data(body)
    stream.feed_eof()
    reader = MultipartReader({"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, stream)
    parts = []
    while (each := await reader.next()) is not None:
        parts.append((each.name, each.filename is not None, bytes(await each.read())))
    return parts


@given(parts=st.lists(st.tuples(NAMES, st.booleans(), CONTENT), min_size=1, max_size=4), cut=st.integers(1, 40))
def test_it_reads_what_another_reader_reads(parts, cut):
    body = form(*(part(name, content, "f" if is_file else None) for name, is_file, content in parts))
    try:
        got = read(body, cut=cut)
    except InvalidRequest:
        # Text that is no UTF-8, or what looks like a border inside of a part.
        texts = b"".join(content for _, is_file, content in parts if not is_file)
        ambiguous = any(f"--{BOUNDARY}".encode() in content + b"\r\n--" for _, _, content in parts)
        assert ambiguous or texts.decode("utf-8", "replace").encode() != texts
        return
    other = asyncio.run(_by_aiohttp(body))
    fields: dict[str, list[bytes]] = {}
    for name, is_file, content in other:
        if not is_file:
            fields.setdefault(name, []).append(content)
    assert {name: [text.encode() for text in texts] for name, texts in got.fields.items()} == fields
    assert got.files == {name for name, is_file, _ in other if is_file}
    for name, (start, end) in got.spans.items():
        assert body[start:end] == fields[name][-1]


@given(body=st.binary(max_size=80), cut=st.integers(1, 20))
def test_whatever_comes_is_read_or_refused(body, cut):
    border = f"--{BOUNDARY}\r\n".encode()
    for each in (body, border + body, border + part("model", body)):
        try:
            read(each, cut=cut)
        except InvalidRequest as error:
            assert error.message  # noqa: PT017 - either outcome is right, a third is not


MODEL = part("model", "whisper-1")
MALFORMED = {
    "nothing": b"",
    "no end": form(MODEL, end=b""),
    "half an end": form(MODEL, end=b"-"),
    "something behind the end": form(MODEL) + b"--" + BOUNDARY.encode(),
    "something before the beginning": b"\r\n" + form(MODEL),
    "bare line feeds": form(MODEL).replace(b"\r\n", b"\n"),
    "a blank behind a border": form(MODEL).replace(BOUNDARY.encode() + b"\r\n", BOUNDARY.encode() + b" \r\n", 1),
    "a border at the very beginning of a part": form(part("file", b"------form7\r\n" + MODEL, "f")),
    "a border behind a bare line feed": form(part("file", b"x\n------form7\r\n" + MODEL, "f")),
    "a border behind no line end": form(part("file", b"x------form7\r\n" + MODEL, "f")),
    "a border that goes on": form(part("file", b"a\r\n------form7b", "f"), MODEL),
    "no name": form(b"Content-Disposition: form-data\r\n\r\nx"),
    "no disposition": form(b"Content-Type: text/plain\r\n\r\nx"),
    "another disposition": form(b'Content-Disposition: attachment; name="model"\r\n\r\nx'),
    "two dispositions": form(b'Content-Disposition: form-data; name="a"\r\n' + MODEL),
    "two names": form(b'Content-Disposition: form-data; name="model"; name="a"\r\n\r\nx'),
    "a name in another charset": form(b"Content-Disposition: form-data; name=\"a\"; name*=utf-8''model\r\n\r\nx"),
    "a name with a quote": form(b'Content-Disposition: form-data; name="mo\\"del"\r\n\r\nx'),
    "a name with a percent sign": form(b'Content-Disposition: form-data; name="m%6fdel"\r\n\r\nx'),
    "a file name with a quote": form(b'Content-Disposition: form-data; name="f"; filename="a\\"; name=\\"b"\r\n\r\nx'),
    "a folded header": form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nx'),
    "a header with a control": form(b'Content-Disposition: form-data; name="model"\0\r\n\r\nx'),
    "an encoded part": form(part("model", "d2hpc3Blci0x", extra="Content-Transfer-Encoding: base64\r\n")),
    "a packed part": form(part("model", "x", extra="Content-Encoding: gzip\r\n")),
    "a blank that is none": form(b'Content-Disposition: form-data;\xc2\xa0name="model"\r\n\r\nx'),
    "a blank that is none in front": form(b'Content-Disposition: \xc2\xa0form-data; name="model"\r\n\r\nx'),
    "a blank that is none behind": form(b'Content-Disposition: form-data; name="model"\xc2\x85\r\n\r\nx'),
    "another charset": form(part("model", "+AHc-hisper-1", extra="Content-Type: text/plain; charset=utf-7\r\n")),
    "another charset, quoted": form(part("model", "x", extra='Content-Type: text/plain; Charset="utf-16"\r\n')),
    "another charset, extended": form(part("model", "x", extra="Content-Type: a/b; charset*=utf-8''utf-7\r\n")),
    "another charset for all": form(part("_charset_", "utf-7"), MODEL),
    "a long head": form(part("model", "x", extra=f"X-Long: {'a' * 9_000}\r\n")),
    "text that is not UTF-8": form(part("model", b"\xff")),
    "too many parts": form(*[part("include[]", "x")] * 257),
    "a file without a name": form(part("file", b"x" * (4 * 1024 * 1024 + 1))),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_two_could_read_in_two_ways_is_refused(name):
    assert refused(MALFORMED[name]).message


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a b",
        f"multipart/form-data; boundary={'a' * 71}",
        "multipart/form-data; charset=utf-7; boundary=----form7",
        "multipart/mixed; boundary=----form7",
        "multipart/form-data; boundary*=utf-8''x",
    ],
)
def test_content_types_that_are_refused(content_type):
    assert "content type" in refused(form(MODEL), content_type=content_type).message


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8", "US-ASCII; x=y", "ISO-8859-1"])
def test_parts_that_say_what_they_are(charset):
    extra = f"Content-Type: text/plain; charset={charset}\r\n"
    assert read(form(part("model", "whisper-1", extra=extra))).one("model") == "whisper-1"
    assert read(form(part("file", "x", "a.txt", "Content-Type: text/plain; charset=utf-16\r\n"))).files == {"file"}


def test_boundaries_as_clients_write_them():
    for boundary in ("d98a1b", "----WebKitFormBoundary7MA4YWxkTrZu0gW", "uuid-1'x_y.z"):
        body = form(MODEL, boundary=boundary)
        for written in (f"multipart/form-data; boundary={boundary}", f'Multipart/Form-Data;boundary="{boundary}"'):
            assert read(body, content_type=written).one("model") == "whisper-1"


def test_a_field_that_is_one_is_text_and_there_once():
    twice = read(form(MODEL, part("model", "gpt-4o-transcribe")))
    as_file = read(form(part("model", "whisper-1", "m.txt")))
    as_array = read(form(part("model[]", "whisper-1"), MODEL))
    in_capitals = read(form(part("Model", "whisper-1"), MODEL))
    for each in (twice, as_file, as_array, in_capitals):
        with pytest.raises(InvalidRequest) as caught:
            each.one("model")
        assert caught.value.param == "model"
    assert read(form(part("prompt", "x"))).one("model") is None


def test_a_deployment_is_the_model_where_the_form_names_none_or_the_same():
    assert read(form(part("prompt", "x"))).naming("whisper-1").one("model") == "whisper-1"
    assert read(form(MODEL)).naming("whisper-1").one("model") == "whisper-1"
    with pytest.raises(InvalidRequest, match="deployment"):
        read(form(MODEL)).naming("gpt-4o-transcribe")


def test_a_part_put_at_the_beginning_is_read_as_any_other():
    body = form(part("file", b"\x00\x01", "a.mp3"))
    with_model = read(body).part("model", "whisper-1") + body
    assert read(with_model).one("model") == "whisper-1"
    assert read(with_model).files == {"file"}
