import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import MAX_CONTAINERS, MAX_VALUES, canonical, member_spans, parse_object

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(st.text(), values, max_size=6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": 1, "\\u0061": 2}', "twice"),
        (b'{"x": [{"b": {}, "b": {}}]}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "out of range"),
        (b'{"a": 9223372036854775808}', "out of range"),
        (b'{"a": -9223372036854775809}', "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a": "\\ud83d"}', "surrogate"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "levels deep"),
        (b'{"a":' + b"[" * 90_000, "levels deep"),
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(body, said):
    with pytest.raises(InvalidRequest) as refused:
        parse_object(body)
    assert said in refused.value.message
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("depth", [1, 63, 64])
def test_depth_up_to_the_bound_passes_and_one_more_does_not(depth):
    def nested(levels):
        return b'{"a":' * levels + b"1" + b"}" * levels

    assert parse_object(nested(depth))
    with pytest.raises(InvalidRequest):
        parse_object(nested(depth + 1), max_depth=depth)


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("[]", MAX_CONTAINERS - 2),
        ('{"a":1}', MAX_CONTAINERS - 2),
        ("1", MAX_VALUES - 2),
        ('"[,\\\\\\"{"', MAX_VALUES - 2),
    ],
    ids=["arrays", "objects", "numbers", "strings"],
)
def test_values_up_to_the_bound_pass_and_one_more_does_not(unit, most):
    body = f'{{"a":[{",".join([unit] * most)}]}}'.encode()
    assert len(parse_object(body)["a"]) == most
    with pytest.raises(InvalidRequest, match="arrays and objects"):
        parse_object(body[:-2] + b"," + unit.encode() + b"]}")


@given(st.lists(st.sampled_from(["\\", '"', "[", ",", "é", "."]), max_size=40), st.integers(0, 5), st.integers(0, 3))
def test_what_stands_in_text_is_no_value(parts, dots, copies):
    text = "".join(parts).replace(".", "." * 10**dots) * 2**copies + "[" * (MAX_CONTAINERS + 1)
    assert parse_object(json.dumps({"a": text, "b": [text]}).encode())["a"] == text


def test_brackets_in_text_are_not_depth():
    assert parse_object(json.dumps({"a": "[{" * 500}).encode()) == {"a": "[{" * 500}


@given(objects)
def test_what_json_dumps_writes_is_read_back(value):
    assert parse_object(json.dumps(value).encode()) == value
    assert parse_object(json.dumps(value, ensure_ascii=False).encode()) == value


@given(objects, st.randoms(use_true_random=False))
def test_order_of_keys_blanks_and_escapes_do_not_change_the_canonical_form(value, random):
    def shuffled(node):
        if isinstance(node, dict):
            members = [(name, shuffled(member)) for name, member in node.items()]
            random.shuffle(members)
            return dict(members)
        return [shuffled(member) for member in node] if isinstance(node, list) else node

    one = canonical(parse_object(json.dumps(value).encode()))
    other = canonical(parse_object(json.dumps(shuffled(value), indent=3, ensure_ascii=False).encode()))
    assert one == other


@pytest.mark.parametrize("number", [b"1e300", b"-1e19", b"9007199254740992.0"])
def test_a_float_beyond_exact_integers_stays_one_and_can_be_written(number):
    value = parse_object(b'{"a": ' + number + b"}")
    assert isinstance(value["a"], float)
    assert json.loads(canonical(value)) == {"a": float(number)}


@pytest.mark.parametrize(("one", "other"), [(b"0", b"0.0"), (b"1", b"1e0"), (b"-0", b"0"), (b"0.10", b"0.1")])
def test_equal_numbers_have_one_canonical_form(one, other):
    assert canonical(parse_object(b'{"a":' + one + b"}")) == canonical(parse_object(b'{"a":' + other + b"}"))


@given(objects, objects)
def test_different_objects_have_different_canonical_forms(one, other):
    same = parse_object(json.dumps(one).encode()) == parse_object(json.dumps(other).encode())

    def typed(node):  # True == 1 to Python, not to JSON
        return json.dumps(node, sort_keys=True)

    read_one, read_other = parse_object(json.dumps(one).encode()), parse_object(json.dumps(other).encode())
    assert (canonical(read_one) == canonical(read_other)) == (same and typed(read_one) == typed(read_other))


@given(objects, st.integers(0, 3))
def test_member_spans_find_every_member(value, indent):
    text = " " * indent + json.dumps(value, indent=indent or None, ensure_ascii=indent % 2 == 0)
    spans = member_spans(text)
    assert set(spans) == set(value)
    for name, (name_at, value_at, value_end) in spans.items():
        assert json.loads(text[value_at:value_end]) == value[name]
        assert text[name_at] == '"'
