"""A model that the path names, and what becomes of a body that names one too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chat import parse_chat
from proxy.core.deployment import with_deployment
from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import parse_object

MEMBERS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "model"),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)
NAMES = st.text(min_size=1, max_size=20)
BLANKS = st.text(" \t\r\n", max_size=3)


@given(MEMBERS, NAMES, BLANKS, BLANKS)
def test_a_body_without_a_model_gets_the_deployments_and_stays_as_it_came(members, name, before, inside):
    written = json.dumps(members, ensure_ascii=False)
    raw = f"{before}{{{inside}{written[1:]}".encode()
    body, sent = with_deployment(parse_object(raw), raw, name)
    assert body == {"model": name, **members}
    assert parse_object(sent) == body, "what is read here is what upstream reads"
    assert sent.endswith(raw.lstrip()[1:])


@given(MEMBERS, NAMES)
def test_a_body_that_names_the_same_is_left_alone(members, name):
    raw = json.dumps({**members, "model": name}).encode()
    body = parse_object(raw)
    assert with_deployment(body, raw, name) == (body, raw)
    assert with_deployment(body, raw, name)[1] is raw


@pytest.mark.parametrize("stated", ["gpt-4o-mini", "", "GPT-4o", "gpt-4o "])
def test_a_body_that_names_another_is_refused(stated):
    raw = json.dumps({"model": stated}).encode()
    with pytest.raises(InvalidRequest, match="gpt-4o") as refused:
        with_deployment(parse_object(raw), raw, "gpt-4o")
    assert refused.value.param == "model"


@pytest.mark.parametrize("stated", [None, 4, ["gpt-4o"], {}])
def test_what_is_no_name_is_refused_as_it_is_everywhere(stated):
    raw = json.dumps({"model": stated, "messages": []}).encode()
    body, sent = with_deployment(parse_object(raw), raw, "gpt-4o")
    assert sent is raw
    with pytest.raises(InvalidRequest):
        parse_chat(body, sent)
