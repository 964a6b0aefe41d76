import copy

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.fingerprint import EXCLUDED_MEMBERS, digest, in_form
from proxy.core.replay import Form

ONE, OTHER = b"1" * 32, b"2" * 32
leaves = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
names = st.text(max_size=8).filter(lambda name: name not in EXCLUDED_MEMBERS)
bodies = st.dictionaries(names, values, max_size=5)
WHERE = {"method": "POST", "path": "/chat/completions", "upstream": "https://u/v1"}


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
