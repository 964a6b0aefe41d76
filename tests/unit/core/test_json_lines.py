import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_lines import json_lines

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def paths(value, path=()):
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def test_every_member_and_element_has_its_line():
    text = '{"a": 1,\n "b": [\n  {"c": "x\\ny"}, 2,\n\n 3]\n,"d" :\n{ } }'
    lines, twice = json_lines(text)
    assert lines == {("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, "c"): 3, ("b", 1): 3, ("b", 2): 5, ("d",): 6}
    assert twice == []


def test_a_name_that_is_there_twice_is_told_with_the_second_line():
    lines, twice = json_lines('{"a": {"x": 1,\n"x": 2},\n"b": 1, "a": 3}')
    assert twice == [("a", "x"), ("a",)]
    assert lines["a", "x"] == 2


@given(values, st.sampled_from([None, 1]))
def test_all_of_any_text_is_found(value, indent):
    lines, twice = json_lines(json.dumps(value, indent=indent))
    found = list(paths(value))
    assert set(lines) == set(found)
    assert twice == []
    if indent is not None:
        # Indented, each member and element begins a line of its own.
        assert len(set(lines.values())) == len(found)
