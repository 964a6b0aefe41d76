"""Members of an object that passes are those that a parser of the whole would find."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.members import MemberScanner

NAMES = st.sampled_from(["usage", "type", "data", 'a"b', "us\\age", "u"])
TEXT = st.text(max_size=8) | st.sampled_from(['"usage": {', "\\", '\\"', "}", "]", ","])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def scan(data: bytes, cut: int, **more: int) -> MemberScanner:
    scanner = MemberScanner(("usage", "type"), **more)
    for at in range(0, len(data), cut):
        scanner.feed(data[at : at + cut])
    return scanner


@given(
    value=st.dictionaries(NAMES, VALUES, max_size=5),
    cut=st.integers(1, 30),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
def test_it_finds_what_a_parser_finds(value, cut, indent, ascii_only):
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    scanner = scan(data + b"\n ", cut)
    assert scanner.ended
    assert not scanner.broken
    assert {name: json.loads(text) for name, text in scanner.values.items()} == {
        name: value[name] for name in ("usage", "type") if name in value
    }


@given(value=st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), data=st.data())
def test_it_has_not_ended_before_its_end(value, data):
    text = json.dumps(value).encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    assert not scan(text[:cut] or b" ", 5).ended


@given(data=st.binary(max_size=60), cut=st.integers(1, 10))
def test_whatever_comes_does_no_harm(data, cut):
    scan(data, cut)


@pytest.mark.parametrize("data", [b"[]", b'"x"', b"5", b"{} {}", b"{}x", b"<html>", b"}"])
def test_what_is_no_object_is_broken(data):
    assert scan(data, 1).broken


def test_of_two_the_last_counts_and_what_is_too_long_is_left_out():
    assert scan(b'{"usage": 1, "usage": 2}', 3).values == {"usage": b"2"}
    assert scan(b'{"usage": "%s", "type": 1}' % (b"x" * 100), 7, max_value_bytes=50).values == {"type": b"1"}
    long_name = b'{"%s": 5, "type": 1}' % (b"usage" * 40)
    assert scan(long_name, 7).values == {"type": b"1"}
