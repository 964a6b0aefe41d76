"""A head says what it was told to say, and nothing that was hidden in it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from proxy.adapters import request_head as module
from proxy.adapters.request_head import header_lines, is_plain_target, request_head

OWN = header_lines([("Host", "upstream.example"), ("Authorization", "Bearer sk-own")], ours=True)
TOKEN = st.text("!#$%&'*+.^_`|~0123456789abcXYZ-", min_size=1, max_size=12).filter(
    lambda name: name.lower() not in module._OURS
)
ANYTHING = st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from("\r\n\0\t :\x7f\x85\u2028\udc80"), max_size=20)


def parsed(head: bytes):
    """What a server reads: every message in it, with its headers as they stand."""
    loop = asyncio.new_event_loop()
    try:
        protocol = SimpleNamespace(resume_reading=lambda **_: None, pause_reading=lambda: None)
        parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=65_536, max_field_size=65_536, max_headers=200)
        messages, _, rest = parser.feed_data(head)
        return [message for message, _ in messages], rest
    finally:
        loop.close()


def as_sent(value: str) -> str:
    return value.encode("utf-8", "ignore").decode().strip(" \t")


@given(st.lists(st.tuples(TOKEN, ANYTHING), max_size=6))
def test_a_server_reads_what_was_said_or_nothing_is_sent(headers):
    try:
        head = request_head("POST", "/v1/x", OWN, headers, 0)
    except ValueError:
        assert any(set(value) & {chr(code) for code in (*range(9), *range(10, 32), 127)} for _, value in headers)
        return
    (message,), rest = parsed(head)
    assert rest == b""
    assert (message.method, message.path) == ("POST", "/v1/x")
    said = [(name.decode(), value.decode()) for name, value in message.raw_headers]
    own = [("Host", "upstream.example"), ("Authorization", "Bearer sk-own")]
    assert said == [*own, *((name, as_sent(value)) for name, value in headers), ("Content-Length", "0")]


@given(ANYTHING)
def test_a_name_is_a_token_or_nothing_is_sent(name):
    try:
        lines = header_lines([(name, "x")])
    except ValueError:
        assert not module._TOKEN.fullmatch(name)
    else:
        assert lines == f"{name}: x\r\n"
        assert module._TOKEN.fullmatch(name)


@pytest.mark.parametrize("bad", ["\r\nX-Evil: 1", "\n", "\r", "\0", "\x0b", "\x1f", "\x7f"])
@pytest.mark.parametrize(
    "say",
    [
        lambda text: header_lines([(text, "x")]),
        lambda text: header_lines([("x", "fine"), ("x", text)]),
        lambda text: header_lines([("Authorization", text)], ours=True),
        lambda text: request_head(text, "/", OWN, (), 0),
    ],
    ids=["name", "value", "own", "method"],
)
def test_no_control_character_goes_out_and_none_is_quoted(bad, say):
    with pytest.raises(ValueError, match=r"control character|none may") as caught:
        say(f"sk-secret{bad}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["Authorization: x", "a b", " a", "a ", "", "ä", "a\t", "(a)", "a,b"])
def test_no_name_hides_another(name):
    for _ in range(2):
        with pytest.raises(ValueError, match="name"):
            header_lines([(name, "x")])


@pytest.mark.parametrize("name", ["Host", "CONTENT-LENGTH", "transfer-encoding", "Connection", "Expect"])
def test_nobody_but_us_frames_a_request(name):
    for _ in range(2):
        with pytest.raises(ValueError, match="frames"):
            header_lines([(name, "x")])
    assert header_lines([(name, "x")], ours=True) == f"{name}: x\r\n"
    with pytest.raises(ValueError, match="frames"):
        header_lines([(name, "x")])


def test_methods_that_may_have_a_body_say_that_there_is_none():
    for method, length in [("GET", None), ("HEAD", None), ("POST", "0"), ("DELETE", "0"), ("PUT", "0")]:
        (message,), _ = parsed(request_head(method, "/x", OWN, (), 0))
        assert message.headers.get("Content-Length") == length
    assert request_head("GET", "/x", OWN, (), 3).endswith(b"Content-Length: 3\r\n\r\n")


def test_what_is_remembered_of_names_has_a_bound():
    header_lines((f"x-name-{number}", "x") for number in range(3_000))
    assert len(module._known) <= module._MOST_KNOWN
    header_lines([("x" * 100, "x")])
    assert "x" * 100 not in module._known


@given(st.text(st.characters(max_codepoint=0xFF) | st.sampled_from("/?#%. \r\n&:\\"), max_size=20))
def test_a_plain_target_goes_as_a_url_would_take_it(text):
    target = f"/{text}"
    if is_plain_target(target):
        assert URL(f"http://h{target}", encoded=True).raw_path_qs.removesuffix("?") == target.removesuffix("?")
        assert (target.isascii(), target.isprintable(), " " in target, "#" in target) == (True, True, False, False)
    else:
        assert not target.isascii() or not target.isprintable() or {" ", "#"} & set(target)


@pytest.mark.parametrize("target", ["", "x", "*", "http://h/", "/a b", "/a\r\nb", "/\0", "/é", "/a#b", "/a\n"])
def test_other_targets_are_not_plain(target):
    assert not is_plain_target(target)
