"""Requests as they should not be, byte for byte: what is sent, and what has to become of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["BODY", "Case", "Then", "ask", "corpus", "post"]


class Then(Enum):
    """What the server does with the connection after its last answer."""

    CLOSES = auto()
    LINGERS = auto()
    """The same, once what it still wants of the body has come, or the client has left."""
    STAYS = auto()
    """The next request on it is served."""
    WAITS = auto()
    """It takes what came for the beginning of a request, and wants the rest."""


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes of one client on one connection."""

    sent: bytes
    statuses: tuple[int, ...]
    """Of all answers, in order."""
    then: Then
    forwarded: tuple[str, ...] = ()
    """What the requests that reached upstream ask, in order: what of them is not here must not get there."""
    behind: bytes = b""
    """What follows on the connection and is not looked at. It is refused for what it is, too, without that."""


def ask(question: str) -> bytes:
    """The body of a chat."""
    return json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": question}]}).encode()


BODY = ask("first")
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
LINE = b"POST /v1/chat/completions HTTP/1.1"
ONE_CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(
    key: str, *lines: bytes, line: bytes = LINE, body: bytes = BODY, host: bytes | None = b"Host: gateway"
) -> bytes:
    """A chat with the header lines that frame it; nothing is computed."""
    head = [line, *([host] if host is not None else []), b"Authorization: Bearer " + key.encode(), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def corpus(key: str) -> dict[str, Case]:
    """All cases, by name, for a client that has a key."""
    smuggled = post(key, b"Content-Length: %d" % len(ask("smuggled")), body=ask("smuggled"))

    def broken(*lines: bytes, body: bytes = BODY, status: int = 400, **more: bytes) -> Case:
        """Refused, and what follows on the connection is not looked at."""
        return Case(post(key, *lines, body=body, **more), (status,), Then.CLOSES, behind=smuggled)

    def line(line: bytes, status: int = 400) -> Case:
        return broken(LENGTH, line=line, status=status)

    def good(*lines: bytes, body: bytes = BODY, **more: bytes) -> Case:
        return Case(post(key, *lines, body=body, **more), (200,), Then.STAYS, ("first",))

    cases: dict[str, Case] = {}
    for part in (_lengths, _codings, _chunks, _heads, _targets, _sequences, _expectations):
        found = part(key, smuggled, broken, line, good)
        assert not cases.keys() & found.keys()
        cases |= found
    return cases


Broken = Callable[..., Case]


def _lengths(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    size = len(BODY)
    bad_values = {
        "plus": b"+%d" % size,
        "minus": b"-%d" % size,
        "minus zero": b"-0",
        "hexadecimal": b"0x%x" % size,
        "a fraction": b"%d.0" % size,
        "an exponent": b"1e2",
        "two in a list": b"%d, %d" % (size, size),
        "two different in a list": b"%d, 0" % size,
        "a space inside": b"%d %d" % (size // 10, size % 10),
        "an underscore": b"%d_%d" % (size // 10, size % 10),
        "letters": b"abc",
        "empty": b"",
        "quoted": b'"%d"' % size,
        "2^64": b"18446744073709551616",
        "2^64 and the length": b"%d" % (2**64 + size),
        "thirty nines": b"9" * 30,
        "other digits": "\u0661".encode(),
        "NUL at the end": b"%d\x00" % size,
        "vertical tab in front": b"\x0b%d" % size,
        "form feed behind": b"%d\x0c" % size,
    }
    cases = {f"length: {name}": broken(b"Content-Length: " + value) for name, value in bad_values.items()}
    cases |= {
        "length: twice the same": broken(LENGTH, LENGTH),
        "length: twice, 0 first": broken(b"Content-Length: 0", LENGTH),
        "length: twice, 0 last": broken(LENGTH, b"Content-Length: 0"),
        "length: twice, in other case": broken(LENGTH, b"content-LENGTH: 0"),
        "length: leading zeros": good(b"Content-Length: 000%d" % size),
        "length: blanks around": good(b"Content-Length: \t %d \t" % size),
        "length: no blank": good(b"Content-Length:%d" % size),
        "length: too short": broken(b"Content-Length: %d" % (size - 1)),
        "length: too long": Case(post(key, b"Content-Length: %d" % (size + 1)), (), Then.WAITS),
        "length: 2^64 - 1": broken(b"Content-Length: 18446744073709551615"),
        "length: 2^63": Case(post(key, b"Content-Length: 9223372036854775808") + smuggled, (400,), Then.LINGERS),
        "length: more than is taken": Case(
            post(key, b"Content-Length: 999999999999999999") + smuggled, (413,), Then.LINGERS
        ),
        "length: none": Case(post(key, body=b""), (400,), Then.STAYS),
    }  # fmt: skip
    return cases


def _codings(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    values = {
        "xchunked": b"xchunked",
        "chunked, identity": b"chunked, identity",
        "identity": b"identity",
        "identity, chunked": b"identity, chunked",
        "gzip, chunked": b"gzip, chunked",
        "chunked, chunked": b"chunked, chunked",
        "chunked;": b"chunked;",
        "chunked;a=b": b"chunked;a=b",
        "quoted": b'"chunked"',
        "comma": b",chunked",
        "comma behind": b"chunked,",
        "cow": b"cow",
        "empty": b"",
        "vertical tab": b"\x0bchunked",
        "form feed": b"chunked\x0c",
        "NUL": b"chunked\x00",
        "no-break space": b"\xa0chunked",
        "a Kelvin sign": "chun\u212aed".encode(),
        "long s": "chunked\u017f".encode(),
    }
    cases = {
        f"coding: {name}": broken(b"Transfer-Encoding: " + value, body=ONE_CHUNK) for name, value in values.items()
    }
    both = {f"coding and length: {name}": value for name, value in values.items()}
    cases |= {name: broken(LENGTH, b"Transfer-Encoding: " + value, body=ONE_CHUNK) for name, value in both.items()}
    cases |= {
        "coding after a length": broken(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG"),
        "coding before a length": broken(CHUNKED, b"Content-Length: 6", body=b"0\r\n\r\nG"),
        "coding and a length of 0": broken(CHUNKED, b"Content-Length: 0", body=ONE_CHUNK),
        "coding: a space before the colon": broken(LENGTH, b"Transfer-Encoding : chunked", body=ONE_CHUNK),
        "coding: a tab before the colon": broken(LENGTH, b"Transfer-Encoding\t: chunked", body=ONE_CHUNK),
        "coding: a blank before the name": broken(LENGTH, b" Transfer-Encoding: chunked", body=ONE_CHUNK),
        "coding: folded": broken(b"Transfer-Encoding:", b" chunked", body=ONE_CHUNK),
        "coding: folded with a tab": broken(b"Transfer-Encoding: chunked", b"\tx", body=ONE_CHUNK),
        "coding: behind a bare LF": broken(LENGTH, b"X: y\nTransfer-Encoding: chunked", body=ONE_CHUNK),
        "coding: behind a bare CR": broken(LENGTH, b"X: y\rTransfer-Encoding: chunked", body=ONE_CHUNK),
        "coding: NUL in the name": broken(LENGTH, b"Transfer\x00-Encoding: chunked", body=ONE_CHUNK),
        "coding: underscore in the name": Case(
            post(key, LENGTH, b"Transfer_Encoding: chunked"), (200,), Then.STAYS, ("first",)
        ),
        "coding: twice chunked": broken(CHUNKED, CHUNKED, body=ONE_CHUNK),
        "coding: twice, the second unknown": broken(CHUNKED, b"Transfer-Encoding: cow", body=ONE_CHUNK),
        "coding: twice, the first unknown": broken(b"Transfer-Encoding: cow", CHUNKED, body=ONE_CHUNK),
        "coding: chunked in HTTP/1.0": broken(CHUNKED, body=ONE_CHUNK, line=LINE.replace(b"1.1", b"1.0")),
        "coding: in other letters": good(b"tRANSFER-eNCODING: cHUNKED", body=ONE_CHUNK),
        "coding: a blank behind": good(b"Transfer-Encoding: chunked ", body=ONE_CHUNK),
        "coding: blanks in front": good(b"Transfer-Encoding: \t chunked", body=ONE_CHUNK),
    }
    return cases


def _chunks(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    size = len(BODY)
    half = size // 2

    def trailed(*lines: bytes) -> Case:
        """Served, and nothing is after it: the parser would take a trailer for a header of that."""
        body = ONE_CHUNK[:-2] + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
        return Case(post(key, CHUNKED, b"Trailer: x-sum", body=body), (200,), Then.CLOSES, ("first",), behind=smuggled)

    def sized(text: bytes) -> bytes:
        return text + b"\r\n" + BODY + b"\r\n0\r\n\r\n"

    bad = {
        "no size": sized(b""),
        "a size that is none": sized(b"zz"),
        "a minus": sized(b"-%x" % size),
        "a plus": sized(b"+%x" % size),
        "0x": sized(b"0x%x" % size),
        "a space in front": sized(b" %x" % size),
        "a space behind": sized(b"%x " % size),
        "a tab behind": sized(b"%x\t" % size),
        "an underscore": sized(b"%x_%x" % (size // 16, size % 16)),
        "2^64": sized(b"10000000000000000"),
        "2^64 and the size": sized(b"1%016x" % size),
        "a size below": sized(b"%x" % (size - 1)),
        "a size above": sized(b"%x" % (size + 1)),
        "a bare LF after the size": b"%x\n" % size + BODY + b"\r\n0\r\n\r\n",
        "a bare LF after the data": b"%x\r\n" % size + BODY + b"\n0\r\n\r\n",
        "a bare CR after the size": b"%x\r" % size + BODY + b"\r\n0\r\n\r\n",
        "no line end after the data": b"%x\r\n" % size + BODY + b"0\r\n\r\n",
        "bare LFs at the end": b"%x\r\n" % size + BODY + b"\r\n0\n\n",
        "a bare LF in an extension": sized(b"%x;a\nb" % size),
        "a bare CR in an extension": sized(b"%x;a\rb" % size),
        "NUL in an extension": sized(b"%x;a=\x00" % size),
        "NUL in the size": sized(b"%x\x00" % size),
        "a quoted extension with a line end": sized(b'%x;a="\r\n"' % size),
        "a space before an extension": sized(b"%x ;a=b" % size),
        "the end with a size of -0": b"%x\r\n" % size + BODY + b"\r\n-0\r\n\r\n",
    }
    cases = {f"chunks: {name}": broken(CHUNKED, body=body) for name, body in bad.items()}
    cases |= {
        "chunks: one": good(CHUNKED, body=ONE_CHUNK),
        "chunks: two": good(
            CHUNKED, body=b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (half, BODY[:half], size - half, BODY[half:])
        ),
        "chunks: leading zeros": good(CHUNKED, body=sized(b"0000%x" % size)),
        "chunks: capitals": good(CHUNKED, body=sized(b"%X" % size)),
        "chunks: zeros at the end": good(CHUNKED, body=b"%x\r\n" % size + BODY + b"\r\n0000\r\n\r\n"),
        "chunks: an extension": good(CHUNKED, body=sized(b'%x;a=b;c="d"' % size)),
        "chunks: a trailer": trailed(b"x-sum: 1"),
        "chunks: an empty trailer": trailed(b"x-sum:"),
        "chunks: a trailer that ends as a body does": trailed(b"x-sum: 0"),
        "chunks: a host in the trailers": Case(
            trailed(b"Host: elsewhere.example").sent, (200,), Then.CLOSES, ("first",)
        ),
        "chunks: trailers that are headers elsewhere": trailed(
            b"x-tollgate-max-wait: nonsense", b"Authorization: Bearer x"
        ),
        "chunks: an extension at the end": Case(
            post(key, CHUNKED, body=ONE_CHUNK.replace(b"\r\n0\r\n", b"\r\n0;a=b\r\n")), (200,), Then.CLOSES, ("first",)
        ),
        "chunks: a length in the trailers": broken(CHUNKED, body=ONE_CHUNK[:-2] + b"Content-Length: 5\r\n\r\n"),
        "chunks: a coding in the trailers": broken(CHUNKED, body=ONE_CHUNK[:-2] + b"Transfer-Encoding: x\r\n\r\n"),
        "chunks: a trailer without a colon": broken(CHUNKED, body=ONE_CHUNK[:-2] + b"trailer\r\n\r\n"),
        "chunks: a folded trailer": broken(CHUNKED, body=ONE_CHUNK[:-2] + b"x-a: b\r\n c\r\n\r\n"),
        "chunks: trailers without end": broken(
            CHUNKED, body=ONE_CHUNK[:-2] + b"".join(b"x-%d: a\r\n" % number for number in range(1_000)), status=431
        ),
        "chunks: no end": Case(post(key, CHUNKED, body=ONE_CHUNK[:-5]), (), Then.WAITS),
        "chunks: no last line end": Case(post(key, CHUNKED, body=ONE_CHUNK[:-2]), (), Then.WAITS),
        "chunks: no last LF": Case(post(key, CHUNKED, body=ONE_CHUNK[:-1]), (), Then.WAITS),
        "chunks: of one byte each": good(CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
        "chunks: an extension that does not end": Case(
            post(key, CHUNKED, body=b"%x;" % size + b"a" * 2_000_000), (400,), Then.CLOSES
        ),
        "chunks: an extension without end": broken(CHUNKED, body=b"%x;" % size + b"a" * 2_000_000),
        "chunks: an end without a body": Case(post(key, CHUNKED, body=b"0\r\n\r\n"), (400,), Then.STAYS),
        "chunks: gzip inside": good(
            CHUNKED,
            b"Content-Encoding: gzip",
            body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(gzip.compress(BODY)), gzip.compress(BODY)),
        ),
        "chunks: two packed bodies behind each other": Case(
            post(
                key,
                b"Content-Encoding: gzip",
                b"Content-Length: %d" % (2 * len(gzip.compress(BODY, mtime=0))),
                body=2 * gzip.compress(BODY, mtime=0),
            ),
            (400,),
            Then.STAYS,
        ),
    }
    return cases


def _heads(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    whole = post(key, LENGTH)
    bad_lines = {
        "a space before the colon": b"x-a : b",
        "a tab before the colon": b"x-a\t: b",
        "a space in the name": b"x a: b",
        "no colon": b"x-a",
        "no name": b": b",
        "only a colon": b":",
        "folded": b"x-a: b\r\n c",
        "folded with a tab": b"x-a: b\r\n\tc",
        "folded and empty": b"x-a: b\r\n ",
        "a bare LF": b"x-a: b\nx-c: d",
        "a bare LF in front": b"\nx-a: b",
        "a bare CR": b"x-a: b\rx-c: d",
        "CR CR LF": b"x-a: b\r",
        "NUL in the name": b"x\x00a: b",
        "NUL in the value": b"x-a: b\x00c",
        "a control in the name": b"x\x01a: b",
        "a control in the value": b"x-a: b\x01c",
        "an escape in the value": b"x-a: \x1b[31m",
        "backspace in the value": b"x-a: b\x08",
        "delete in the value": b"x-a: b\x7f",
        "delete in the name": b"x\x7fa: b",
        "brackets in the name": b"x[a]: b",
        "a quote in the name": b'x"a: b',
        "a slash in the name": b"x/a: b",
        "a byte above ASCII in the name": b"x\xe9a: b",
        "UTF-8 in the name": "é: b".encode(),
        "a name in full width": "\uff48ost: b".encode(),
        "the old websocket": b"Sec-WebSocket-Key1: 1",
    }
    cases = {f"head: {name}": broken(LENGTH, bad) for name, bad in bad_lines.items()}
    cases |= {
        "head: bare LFs throughout": Case(whole.replace(b"\r\n", b"\n") + smuggled, (400,), Then.CLOSES),
        "head: bare CRs throughout": Case(whole.replace(b"\r\n", b"\r") + smuggled, (400,), Then.CLOSES),
        "head: ends with LF LF": Case(whole.replace(b"\r\n\r\n", b"\n\n") + smuggled, (400,), Then.CLOSES),
        "head: ends with LF CR LF": Case(whole.replace(b"\r\n\r\n", b"\n\r\n") + smuggled, (400,), Then.CLOSES),
        "head: ends with CR LF LF": Case(whole.replace(b"\r\n\r\n", b"\r\n\n") + smuggled, (400,), Then.CLOSES),
        "head: ends with CR LF CR": Case(whole.replace(b"\r\n\r\n", b"\r\n\rx") + smuggled, (400,), Then.CLOSES),
        "head: a blank before the first header": broken(LENGTH, line=LINE + b"\r\n x-a: b"),
        "head: two hosts": broken(LENGTH, b"Host: elsewhere.example"),
        "head: the same host twice": broken(LENGTH, b"Host: gateway"),
        "head: no host": broken(LENGTH, host=None),
        "head: an empty host": good(LENGTH, host=b"Host:"),
        "head: no host in HTTP/1.0": Case(
            post(key, LENGTH, line=LINE.replace(b"1.1", b"1.0"), host=None), (200,), Then.CLOSES, ("first",)
        ),
        "head: two content types": broken(LENGTH, b"Content-Type: a/b", b"Content-Type: c/d"),
        "head: two keys, of which the first counts": good(LENGTH, b"Authorization: Bearer another"),
        "head: the key in headers of other names": good(
            LENGTH, b"Authorisation: Bearer " + key.encode(), b"x-client-request-id: " + key.encode()
        ),
        "head: a value above ASCII": Case(post(key, LENGTH, b"x-a: \xe9"), (400,), Then.STAYS),
        "head: a value in UTF-8": good(LENGTH, "x-a: é".encode()),
        "head: an empty value": good(LENGTH, b"x-a:"),
        "head: an odd name that is one": good(LENGTH, b"!#$%&'*+-.^_`|~09: b"),
        "head: a tab in the value": good(LENGTH, b"x-a: b\tc"),
        "head: blank lines before the request": Case(b"\r\n\r\n" + whole, (200,), Then.STAYS, ("first",)),
        "head: too many headers": broken(LENGTH, *(b"x-%d: a" % number for number in range(200)), status=431),
        "head: one header too large": broken(LENGTH, b"x-a: " + b"a" * 70_000, status=431),
        "head: headers too large together": broken(
            LENGTH, *(b"x-%d: %s" % (number, b"a" * 1_000) for number in range(70)), status=431
        ),
        "head: a name too large": broken(LENGTH, b"x" * 70_000 + b": a", status=431),
        "head: without end": Case(whole.split(b"\r\n\r\n")[0], (), Then.WAITS),
        "head: blank lines without end": Case(b"\r\n" * 70_000 + smuggled, (431,), Then.CLOSES),
    }
    return cases


def _targets(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    path = b"/v1/chat/completions"

    def unknown(target: bytes, status: int = 404) -> Case:
        return Case(post(key, LENGTH, line=b"POST " + target + b" HTTP/1.1"), (status,), Then.STAYS)

    bad = {
        "HTTP/0.9": b"POST " + path,
        "HTTP/0.9, told": b"POST " + path + b" HTTP/0.9",
        "HTTP/1.2": b"POST " + path + b" HTTP/1.2",
        "HTTP/2.0": b"POST " + path + b" HTTP/2.0",
        "HTTP/11.1": b"POST " + path + b" HTTP/11.1",
        "HTTP/1.10": b"POST " + path + b" HTTP/1.10",
        "http/1.1": b"POST " + path + b" http/1.1",
        "HTTP/1,1": b"POST " + path + b" HTTP/1,1",
        "XTTP/1.1": b"POST " + path + b" XTTP/1.1",
        "a space behind the version": b"POST " + path + b" HTTP/1.1 ",
        "a tab between": b"POST\t" + path + b"\tHTTP/1.1",
        "a space in front": b" POST " + path + b" HTTP/1.1",
        "a space in the path": b"POST /v1/chat /completions HTTP/1.1",
        "no path": b"POST  HTTP/1.1",
        "no method": path + b" HTTP/1.1",
        "an unknown method": b"BREW " + path + b" HTTP/1.1",
        "a method in small letters": b"post " + path + b" HTTP/1.1",
        "a method with a NUL": b"PO\x00ST " + path + b" HTTP/1.1",
        "NUL in the path": b"POST /v1/chat\x00/completions HTTP/1.1",
        "a control in the path": b"POST /v1/chat\x01/completions HTTP/1.1",
        "a bare CR in the path": b"POST " + path + b"\r HTTP/1.1",
        "a byte above ASCII in the path": b"POST /v1/\xff HTTP/1.1",
        "UTF-8 in the path": b"POST /v1/\xc3\xa9 HTTP/1.1",
        "a byte above ASCII in the query": b"POST " + path + b"?a=\xff HTTP/1.1",
        "an asterisk": b"POST * HTTP/1.1",
        "an authority": b"POST gateway:80 HTTP/1.1",
        "a relative path": b"POST v1/chat/completions HTTP/1.1",
        "a scheme without a host": b"POST http:///v1/chat/completions HTTP/1.1",
        "a host that is none": b"POST http://[::1/v1/chat/completions HTTP/1.1",
    }
    cases = {f"line: {name}": line(bad_line) for name, bad_line in bad.items()}
    cases |= {
        "line: the preface of HTTP/2": Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + smuggled, (400,), Then.CLOSES),
        "line: a TLS hello": Case(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,), Then.CLOSES),
        "line: the PROXY protocol": Case(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + smuggled, (400,), Then.CLOSES),
        # As HTTP/1.0, with a method that nothing here has.
        "line: ICE/1.0": Case(post(key, LENGTH, line=b"SOURCE " + path + b" ICE/1.0"), (405,), Then.CLOSES),
        "line: RTSP/1.0": Case(post(key, LENGTH, line=b"SETUP " + path + b" RTSP/1.0"), (405,), Then.CLOSES),
        "line: two spaces after the path": good(LENGTH, line=b"POST " + path + b"  HTTP/1.1"),
        "line: too long": line(b"POST /v1/" + b"a" * 70_000 + b" HTTP/1.1", status=431),
        "line: too long, without end": Case(b"POST /v1/" + b"a" * 140_000, (431,), Then.CLOSES),
        "target: another host": unknown(b"http://elsewhere.example/v1/chat/completions"),
        "target: another host that is ours by name": unknown(b"http://gateway/v1/chat/completions"),
        "target: https": unknown(b"https://elsewhere.example/v1/chat/completions"),
        "target: a password": unknown(b"http://a:b@elsewhere.example/v1/chat/completions"),
        "target: two slashes": unknown(b"//elsewhere.example/v1/chat/completions"),
        "target: dots": unknown(b"/v1/../v1/chat/completions"),
        "target: encoded letters": unknown(b"/v1/%63hat/completions"),
        "target: encoded dots": unknown(b"/v1/%2e%2e/chat/completions"),
        "target: an encoded slash": unknown(b"/v1/chat%2fcompletions"),
        "target: an encoded line end": unknown(b"/v1/chat/completions%0d%0aHost:%20x"),
        "target: an encoded NUL": unknown(b"/v1/chat/completions%00"),
        "target: a fragment": unknown(b"/v1/chat/completions#x"),
        "target: a backslash": unknown(b"/v1\\chat/completions"),
        "target: the key in the query": good(
            LENGTH, line=LINE.replace(b" HTTP", b"?a=b&api_key=%s HTTP" % key.encode())
        ),
        "target: a query is sent on": Case(
            post(key, LENGTH, line=LINE.replace(b" HTTP", b"?a=%0d%0ab&c=//x HTTP")), (200,), Then.STAYS, ("first",)
        ),
        "method: CONNECT": Case(
            post(key, line=b"CONNECT elsewhere.example:443 HTTP/1.1", body=b"") + smuggled, (404,), Then.CLOSES
        ),
        "method: CONNECT to a path": line(b"CONNECT /v1/chat/completions HTTP/1.1", status=405),
        "method: TRACE": Case(post(key, line=LINE.replace(b"POST", b"TRACE"), body=b""), (405,), Then.STAYS),
        "method: OPTIONS *": Case(post(key, line=b"OPTIONS * HTTP/1.1", body=b""), (404,), Then.STAYS),
        "method: GET with a body": Case(
            post(key, LENGTH, line=b"GET /v1/chat/completions HTTP/1.1"), (403,), Then.STAYS
        ),
    }  # fmt: skip
    return cases


def _sequences(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    first = post(key, LENGTH)
    second = post(key, b"Content-Length: %d" % len(ask("second")), body=ask("second"))
    close = post(key, LENGTH, b"Connection: close")
    return {
        "sequence: two": Case(first + second, (200, 200), Then.STAYS, ("first", "second")),
        "sequence: two, with a blank line between": Case(
            first + b"\r\n" + second, (200, 200), Then.STAYS, ("first", "second")
        ),
        "sequence: one in chunks, and one that came with its end": Case(
            post(key, CHUNKED, body=ONE_CHUNK) + second, (200,), Then.CLOSES, ("first",)
        ),
        "sequence: a good one, a broken one, a good one": Case(
            first + b"BREW / HTTP/1.1\r\n\r\n" + smuggled, (400,), Then.CLOSES
        ),
        "sequence: a good one, a broken body, a good one": Case(
            first + post(key, CHUNKED, body=b"zz\r\n") + smuggled, (400,), Then.CLOSES
        ),
        "sequence: nothing after a close": Case(close + smuggled, (400,), Then.CLOSES),
        "sequence: a close alone": Case(close, (200,), Then.CLOSES, ("first",)),
        "sequence: blank lines after a close": Case(close + b"\r\n\r\n", (200,), Then.CLOSES, ("first",)),
        "sequence: nothing after HTTP/1.0": Case(
            post(key, LENGTH, line=LINE.replace(b"1.1", b"1.0")) + smuggled, (400,), Then.CLOSES
        ),
        "sequence: HTTP/1.0": Case(
            post(key, LENGTH, line=LINE.replace(b"1.1", b"1.0")), (200,), Then.CLOSES, ("first",)
        ),
        "sequence: HTTP/1.0 that asks to stay": Case(
            post(key, LENGTH, b"Connection: keep-alive", line=LINE.replace(b"1.1", b"1.0")) + second,
            (200, 200),
            Then.STAYS,
            ("first", "second"),
        ),
        "sequence: bytes behind a body": Case(first + b"GARBAGE\r\n\r\n" + smuggled, (400,), Then.CLOSES),
        "sequence: a body that is another request": Case(
            post(key, b"Content-Length: %d" % len(smuggled), body=smuggled), (400,), Then.STAYS
        ),
        "upgrade: websocket": Case(
            post(key, LENGTH, b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
                 b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==") + smuggled,
            (200,), Then.CLOSES, ("first",),
        ),
        "upgrade: h2c": Case(
            post(key, LENGTH, b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk")
            + smuggled,
            (200,), Then.CLOSES, ("first",),
        ),
        "upgrade: TLS": Case(
            post(key, LENGTH, b"Upgrade: TLS/1.0", b"Connection: Upgrade") + smuggled, (200,), Then.CLOSES, ("first",)
        ),
        "upgrade: named and not connected": good(LENGTH, b"Upgrade: websocket"),
        "connection: names what frames the request": good(LENGTH, b"Connection: content-length, host, authorization"),
        "connection: keep-alive and close": Case(
            post(key, LENGTH, b"Connection: keep-alive, close"), (200,), Then.CLOSES, ("first",)
        ),
        "te: trailers": good(LENGTH, b"TE: trailers", b"Connection: TE"),
        "te: chunked": good(LENGTH, b"TE: chunked"),
    }  # fmt: skip


def _expectations(key: str, smuggled: bytes, broken: Broken, line: Broken, good: Broken) -> dict[str, Case]:
    wrong = post("sk-tg_wrong", b"Content-Length: 5", b"Expect: 100-continue", body=b"")
    return {
        "expect: continue": Case(post(key, LENGTH, b"Expect: 100-continue"), (100, 200), Then.STAYS, ("first",)),
        "expect: in capitals": Case(post(key, LENGTH, b"EXPECT: 100-Continue"), (100, 200), Then.STAYS, ("first",)),
        "expect: without a body": Case(
            post(key, b"Content-Length: 0", b"Expect: 100-continue", body=b""), (100, 400), Then.STAYS
        ),
        "expect: in HTTP/1.0": Case(
            post(key, LENGTH, b"Expect: 100-continue", line=LINE.replace(b"1.1", b"1.0")),
            (200,),
            Then.CLOSES,
            ("first",),
        ),
        "expect: something else": Case(post(key, LENGTH, b"Expect: the-unexpected") + smuggled, (417,), Then.CLOSES),
        "expect: twice": Case(
            post(key, LENGTH, b"Expect: 100-continue", b"Expect: 100-continue"), (100, 200), Then.STAYS, ("first",)
        ),
        "expect: refused, then a request in the place of the body": Case(wrong + smuggled, (400,), Then.CLOSES),
        "expect: refused, and no body": Case(wrong, (401,), Then.LINGERS),
    }
