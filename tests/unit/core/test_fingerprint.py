import json
import re
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from proxy.core import fingerprint
from proxy.core.fingerprint import EXCLUDED_HEADERS, EXCLUDED_MEMBERS, EXCLUDED_STREAM_OPTIONS, digest, in_form
from proxy.core.replay import Form
from proxy.core.strict_json import parse_object

ONE, OTHER = b"1" * 32, b"2" * 32
WHERE = {"method": "POST", "path": "/chat/completions", "upstream": "https://u/v1"}
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
NOT_COUNTED = EXCLUDED_MEMBERS | {"stream_options"}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = texts.filter(lambda name: name not in NOT_COUNTED)
bodies = st.dictionaries(names, values, max_size=4)


def of(body, secret=ONE, *, salt=b"", headers=(), **where):
    """The digest of a body as it is when it has been read."""
    read = parse_object(json.dumps(body).encode())
    return digest(secret, salt=salt, headers=headers, body=read, **{**WHERE, **where})


def meaning(value):
    """What a JSON value says, by the specification alone: numbers exactly, objects without order."""
    match value:
        case None | bool() | str():
            return type(value), value
        case int() | float():
            return Fraction, Fraction(value)
        case list():
            return list, tuple(map(meaning, value))
        case dict():
            return dict, frozenset((name, meaning(each)) for name, each in value.items())


# Who, and where.


@given(bodies)
def test_two_teams_never_share(body):
    assert of(body, ONE) != of(body, OTHER)


@pytest.mark.parametrize("secret", [b"", b"short"])
def test_no_digest_without_a_team(secret):
    with pytest.raises(ValueError, match="secret"):
        of({}, secret)


@st.composite
def cut_in_three(draw, text):
    """One text as three fields, cut anywhere: those of two draws differ, and read the same in a row."""
    first, second = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    return text[:first], text[first:second], text[second:]


@given(st.text(max_size=6).flatmap(lambda text: st.tuples(cut_in_three(text), cut_in_three(text))))
def test_where_it_goes_counts_and_fields_never_run_together(pair):
    one, other = pair
    fields = ("method", "path", "upstream")
    same = of({}, **dict(zip(fields, one, strict=True))) == of({}, **dict(zip(fields, other, strict=True)))
    assert same == (one == other)


@given(bodies, bodies)
def test_a_form_of_a_request_is_named_by_nothing_else(body, other):
    digests = {of(body), of(other)}
    in_forms = {in_form(each, form) for each in digests for form in Form}
    assert len(in_forms) == 2 * len(digests)
    assert not in_forms & digests
    assert in_form(of(body, ONE), Form.PLAIN) != in_form(of(body, OTHER), Form.PLAIN)


@given(bodies, st.binary(min_size=1, max_size=32), st.binary(min_size=1, max_size=32))
def test_another_salt_forgets(body, salt, other):
    assume(salt != other)
    assert len({of(body), of(body, salt=salt), of(body, salt=other)}) == 3


# What is asked.


@given(bodies, bodies)
@example({"n": 2**53}, {"n": float(2**53)})
@example({"n": 2**53 + 1}, {"n": float(2**53 + 1)})
@example({"n": True}, {"n": 1})
@example({"n": None}, {})
@example({"n": {}}, {"n": []})
@example({"n": "1"}, {"n": 1})
def test_two_requests_that_share_an_answer_say_the_same(body, other):
    assert (of(body) != of(other)) or meaning(body) == meaning(other)


@st.composite
def changed(draw, value):
    """The value with one thing in it changed, at any depth: another value, one less, one more."""
    inside = list(range(len(value))) if isinstance(value, list) else list(value) if isinstance(value, dict) else []
    ways = ["replace", *(["deeper"] * 3 + ["drop"] if inside else []), *(["more"] if isinstance(value, dict) else [])]
    how = draw(st.sampled_from(ways))
    if how == "replace":
        return draw(values.filter(lambda new: meaning(new) != meaning(value)))
    copy = value.copy()
    if how == "more":
        copy[draw(texts.filter(lambda name: name not in value))] = draw(values)
        return copy
    at = draw(st.sampled_from(inside))
    if how == "deeper":
        copy[at] = draw(changed(value[at]))
    else:
        del copy[at]
    return copy


@given(st.data(), bodies.filter(bool))
def test_one_change_at_any_depth_is_another_request(data, body):
    body = ASK | body
    name = data.draw(st.sampled_from(list(body)))
    other = {**body, name: data.draw(changed(body[name]))}
    assert of(body) != of(other)
    without = {each: body[each] for each in body if each != name}
    assert of(body) != of(without)


@given(bodies, st.sampled_from(sorted(EXCLUDED_MEMBERS)), values)
def test_members_that_do_not_change_the_answer_do_not_count(body, name, value):
    assert of(body) == of({**body, name: value})


def test_what_does_not_count_is_this_and_no_more():
    assert sorted(EXCLUDED_MEMBERS) == ["metadata", "prompt_cache_key", "prompt_cache_retention", "stream"]
    for member in ("user", "safety_identifier", "service_tier", "seed", "logprobs", "verbosity", "reasoning_effort"):
        assert of({**ASK, member: "a"}) != of({**ASK, member: "b"})
        assert of({**ASK, member: "a"}) != of(ASK)


@pytest.mark.parametrize("member", sorted(EXCLUDED_MEMBERS))
def test_only_at_the_top_does_a_member_not_count(member):
    message = {"role": "user", "content": "Hi", member: "x"}
    assert of({**ASK, "messages": [message]}) != of(ASK)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(EXCLUDED_STREAM_OPTIONS), values)) | st.none())
def test_how_a_stream_is_told_does_not_count(options):
    assert of({**ASK, "stream": True, "stream_options": options}) == of(ASK)


@given(texts.filter(lambda name: name not in EXCLUDED_STREAM_OPTIONS), values, values)
def test_a_stream_option_nobody_has_heard_of_counts(name, value, other):
    def asked(value):
        return of({**ASK, "stream_options": {"include_usage": True, name: value}})

    assert asked(value) != of(ASK)
    assert (asked(value) == asked(other)) <= (meaning(value) == meaning(other))


# How it is written.


@st.composite
def spelled(draw, value):
    """The value in JSON, in one of the ways there are to write it."""
    blank = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, list):
        return f"[{blank}{f'{blank},'.join(draw(spelled(each)) for each in value)}{blank}]"
    if isinstance(value, dict):
        order = draw(st.permutations(list(value)))
        members = (f"{draw(spelled(name))}{blank}:{blank}{draw(spelled(value[name]))}" for name in order)
        return f"{{{blank}{f'{blank},'.join(members)}}}{blank}"
    return draw(st.sampled_from(_ways(value)))


def _ways(value):
    """How a text, a number or a name can be written."""
    if isinstance(value, str):
        every = "".join(f"\\u{each:04X}" for each in _utf16(value))
        return [json.dumps(value, ensure_ascii=False), json.dumps(value), f'"{every}"']
    if value is None or isinstance(value, bool):
        return [json.dumps(value)]
    if value == 0:
        return ["0", "0.0", "-0", "-0.0", "0e9", "0.00E-2"]
    if abs(value) < 2**53 and value == int(value):
        whole = int(value)
        hundreds = [f"{whole // 100}e2"] if whole % 100 == 0 else []
        return [f"{whole}", f"{whole}.0", f"{whole}e0", f"{whole}E+0", f"{whole}0e-1", f"{whole}.00", *hundreds]
    return [str(value)] if isinstance(value, int) else [repr(value), f"{value:.25e}"]


def _utf16(text):
    units = text.encode("utf-16-be")
    return [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]


@given(st.data(), bodies)
def test_however_it_is_spelled_it_is_the_same_request(data, body):
    body = {**body, "n": 0, "m": 100, "ž": "🦔 é"}
    text = data.draw(spelled(body))
    assert meaning(json.loads(text)) == meaning(body)
    read = parse_object(text.encode())
    assert digest(ONE, salt=b"", headers=(), body=read, **WHERE) == of(body)


def written(number):
    """The digest of a body with a value as it stands."""
    read = parse_object(f'{{"x": {number}}}'.encode())
    return digest(ONE, salt=b"", headers=(), body=read, **WHERE)


@pytest.mark.parametrize(("one", "other"), [("0", "-0.0"), ("1e2", "100"), ("0.1", "1e-1"), ('"\\u00e9"', '"é"')])
def test_the_spellings_that_clients_differ_in(one, other):
    assert written(one) == written(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("9007199254740993.0", "9007199254740992"),
        ("9007199254740993", "9007199254740992.0"),
        ("9007199254740993", "9007199254740992"),
        ("9223372036854775807", "9223372036854775807.0"),
        ("1e300", "1e299"),
        ("0.1", "0.10000000000000002"),
        ("5e-324", "0"),
        ("true", "1"),
        ('"1"', "1"),
    ],
)
def test_numbers_that_are_not_exactly_one_another(one, other):
    assert written(one) != written(other)


def test_a_digest_is_the_same_for_as_long_as_its_version_is():
    """Two versions of the proxy on one cache: what another version would make of a request, it finds elsewhere."""
    body = (
        '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "H\u00e9 \\ud83e\\udd94"}], "top_p": 0.5, '
        '"seed": 7, "temperature": 0.0, "stream": true, "stream_options": {"include_usage": true, "x": 1}, '
        '"metadata": {"a": "b"}}'
    )
    read = parse_object(body.encode())
    headers = (("OpenAI-Beta", "a"), ("x-new", "b"), ("User-Agent", "c"))
    where = {**WHERE, "path": "/chat/completions?a=b"}
    found = digest(ONE, salt=b"salt", headers=headers, body=read, **where)
    # One that differs here belongs to another VERSION.
    told = (fingerprint.VERSION, found.hex(), in_form(found, Form.STREAM).hex())
    assert told == (
        b"3",
        "57906f15c0c64c1a62be1c1f7ae5ee2ac4925e91a5a9a4a92c256635fa745972",
        "b158f411775cdbe298e337c885e6ccbea2379224be164d09871f36b02eeb23cc",
    )


def test_a_letter_and_the_same_letter_put_together_are_two():
    assert of({"x": "\N{LATIN SMALL LETTER E WITH ACUTE}"}) != of({"x": "e\N{COMBINING ACUTE ACCENT}"})


# The headers that go along.

header_names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True).filter(lambda name: not _excluded(name))
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5)
header_lists = st.lists(st.tuples(header_names, header_values), max_size=4)


def _excluded(name):
    lower = name.lower()
    return lower in EXCLUDED_HEADERS or lower.startswith(fingerprint.EXCLUDED_HEADER_PREFIXES)


@given(header_lists, header_lists)
def test_headers_that_differ_make_another_request(one, other):
    def said(headers):
        by_name = {}
        for name, value in headers:
            by_name.setdefault(name.lower(), []).append(value)
        return by_name

    assert (of(ASK, headers=one) == of(ASK, headers=other)) == (said(one) == said(other))


@given(st.dictionaries(header_names.map(str.lower), header_values, max_size=4), st.data())
def test_headers_of_several_names_have_no_order(headers, data):
    order = data.draw(st.permutations(list(headers.items())))
    assert of(ASK, headers=order) == of(ASK, headers=headers.items())


def test_values_of_one_name_have_an_order():
    pairs = [("OpenAI-Beta", "a"), ("x-new", "b"), ("openai-beta", "b")]
    assert of(ASK, headers=pairs) == of(ASK, headers=[pairs[1], pairs[0], pairs[2]])
    assert of(ASK, headers=pairs) != of(ASK, headers=pairs[::-1])
    assert of(ASK, headers=[("x-new", "a"), ("x-new", "b")]) != of(ASK, headers=[("x-new", "b"), ("x-new", "a")])


@given(header_lists, st.sampled_from([*sorted(EXCLUDED_HEADERS), "x-stainless-lang", "X-B3-TraceId"]), texts)
def test_headers_that_tell_one_request_from_another_do_not_count(headers, name, value):
    assert of(ASK, headers=[*headers, (name.title(), value)]) == of(ASK, headers=headers)


def test_which_headers_do_not_count_is_written_so_that_it_holds():
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in EXCLUDED_HEADERS)
    assert all(re.fullmatch(r"[a-z0-9-]+-", prefix) for prefix in fingerprint.EXCLUDED_HEADER_PREFIXES)


@pytest.mark.parametrize(
    "name", ["OpenAI-Beta", "Content-Type", "Accept-Language", "Idempotency-Key", "x-simulate-status", "x-new"]
)
def test_a_header_that_may_change_the_answer_counts(name):
    digests = {of(ASK), *(of(ASK, headers=[(name, value)]) for value in ("", "a", "b"))}
    assert len(digests) == 4
    assert of(ASK, headers=[(name.upper(), "a")]) == of(ASK, headers=[(name.lower(), "a")])


def test_a_header_that_is_no_text_counts_too():
    latin, other = (raw.decode("utf-8", "surrogateescape") for raw in (b"caf\xe9", b"caf\xe8"))
    assert of(ASK, headers=[("x-new", latin)]) != of(ASK, headers=[("x-new", other)])
