import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.multipart import KEPT_BYTES, FormReader
from proxy.simulator.refusal import Refusal

TYPE = 'multipart/form-data; boundary="b-1"'


def part(name, content, filename=None):
    file = f'; filename="{filename}"' if filename is not None else ""
    return f'--b-1\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def read(body, cuts=()):
    reader = FormReader(TYPE)
    at = 0
    for cut in [*sorted(cuts), len(body)]:
        reader.feed(body[at:cut])
        at = cut
    return reader.finish()


@given(
    files=st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n--b-", b"--b-1", b"\r\n", b"\r\n--b-2\r\n"])),
    field=st.text(max_size=20),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_a_form_is_the_same_however_it_is_cut(files, field, cuts):
    files = [content for content in files if b"\r\n--b-1" not in b"\r\n" + content]
    body = b"".join(part("image[]", content, f"{number}.png") for number, content in enumerate(files))
    body += part("model", field.encode()) + b"--b-1--\r\nafter the end"
    form = read(body, [cut for cut in cuts if cut < len(body)])
    assert form.text("model") == field
    found = form.files.get("image", [])
    assert [(each.content, each.filename) for each in found] == [(c, f"{n}.png") for n, c in enumerate(files)]
    assert [each.sha256 for each in found] == [hashlib.sha256(content).hexdigest() for content in files]


def test_of_a_large_file_length_and_digest_are_kept():
    reader = FormReader(TYPE)
    reader.feed(part("file", b"", "x")[:-2])
    digest = hashlib.sha256()
    for _ in range(KEPT_BYTES // 1_000 + 2):
        reader.feed(b"0" * 1_000)
        digest.update(b"0" * 1_000)
        assert len(reader._held) < 2_000
    reader.feed(b"\r\n--b-1--")
    file = reader.finish().file("file")
    assert (file.content, file.sha256) == (None, digest.hexdigest())
    assert file.length > KEPT_BYTES


@pytest.mark.parametrize("size", [KEPT_BYTES, KEPT_BYTES + 1])
def test_the_longest_content_that_is_kept(size):
    content = read(part("file", b"0" * size, "x") + b"--b-1--").file("file").content
    assert (content is not None) == (size == KEPT_BYTES)


def test_a_name_in_any_script():
    assert read(part("file", b"1", "žluť 🦔.png") + b"--b-1--").file("file").filename == "žluť 🦔.png"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        part("a", b"1"),
        part("a", b"1") + b"--b-1x",
        b"--b-1\r\nContent-Type: text/plain\r\n\r\n1\r\n--b-1--",
        b"--b-1\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b-1--",
        b"--b-1\r\n" + b"x" * 20_000,
        part("a", b"\xff") + b"--b-1--",
        part("a", b"1") * 1_001 + b"--b-1--",
    ],
)
def test_what_is_no_form(body):
    with pytest.raises(Refusal) as caught:
        read(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("header", ["multipart/form-data", "multipart/form-data; boundary=", "text/plain"])
def test_no_boundary(header):
    with pytest.raises(Refusal):
        FormReader(header)


def test_what_is_missing_is_named():
    form = read(part("a", b"1") + b"--b-1--")
    assert form.text("b", "x") == "x"
    for ask in (form.text, form.file):
        with pytest.raises(Refusal) as caught:
            ask("b")
        assert caught.value.param == "b"
