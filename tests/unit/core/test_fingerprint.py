import copy

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.fingerprint import EXCLUDED_MEMBERS, digest

ONE, OTHER = b"1" * 32, b"2" * 32
leaves = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
names = st.text(max_size=8).filter(lambda name: name not in EXCLUDED_MEMBERS)
bodies = st.dictionaries(names, values, max_size=5)
WHERE = {"method": "POST", "path": "/chat/completions", "upstream": "https://u/v1", "form": "plain"}


def of(body, secret=ONE, **where):
    return digest(secret, **{**WHERE, **where}, body=body)


@given(bodies)
def test_two_teams_never_share(body):
    assert of(body, ONE) != of(body, OTHER)


@pytest.mark.parametrize("secret", [b"", b"short"])
def test_no_digest_without_a_team(secret):
    with pytest.raises(ValueError, match="secret"):
        of({}, secret)


@given(bodies, names, values)
def test_any_member_more_or_other_is_another_request(body, name, value):
    other = {**copy.deepcopy(body), name: value}
    assume(name not in body or repr(body[name]) != repr(value))
    assert of(body) != of(other)


@given(bodies, st.sampled_from(sorted(EXCLUDED_MEMBERS)), values)
def test_members_that_do_not_change_the_answer_do_not_count(body, name, value):
    assert of(body) == of({**body, name: value})


@st.composite
def cut_in_four(draw, text):
    """One text as four fields, cut anywhere: those of two draws differ, and read the same in a row."""
    first, second, third = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 3)))
    return text[:first], text[first:second], text[second:third], text[third:]


@given(st.text(max_size=6).flatmap(lambda text: st.tuples(cut_in_four(text), cut_in_four(text))))
def test_where_it_goes_counts_and_fields_never_run_together(pair):
    one, other = pair
    fields = ("method", "path", "upstream", "form")
    same = of({}, **dict(zip(fields, one, strict=True))) == of({}, **dict(zip(fields, other, strict=True)))
    assert same == (one == other)
