import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import InvalidRequest
from proxy.core.inputs import MAX_INPUTS, count_of, estimate_of
from proxy.core.kinds import KINDS
from proxy.core.strict_json import parse_object

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
IDS = st.lists(st.integers(0, 200_000), min_size=1, max_size=30)
INPUTS = st.one_of(TEXT, st.lists(TEXT, min_size=1, max_size=8), IDS, st.lists(IDS, min_size=1, max_size=5))
MODELS = {"embeddings": "text-embedding-3-small", "text_completion": "gpt-3.5-turbo-instruct"}
ENDPOINTS = {"embeddings": "input", "text_completion": "prompt"}


def asking(endpoint, **fields):
    raw = json.dumps({"model": MODELS[endpoint], **fields}).encode()
    return KINDS[endpoint].parse(parse_object(raw), raw)


def ids_in(value):
    """Token ids, counted by another way of looking at them."""
    return json.dumps(value).count(",") + 1 if not isinstance(value[0], list) else sum(map(ids_in, value))


@pytest.mark.parametrize(("endpoint", "name"), ENDPOINTS.items())
@given(value=st.one_of(IDS, st.lists(IDS, min_size=1, max_size=5)))
def test_token_ids_are_counted_exactly(endpoint, name, value):
    asked = asking(endpoint, **{name: value})
    assert KINDS[endpoint].estimate(asked) == ids_in(value)
    said = KINDS[endpoint].prompt(asked)
    assert (said.texts, said.more_tokens) == ((), ids_in(value))


@pytest.mark.parametrize(("endpoint", "name"), ENDPOINTS.items())
@given(value=st.one_of(TEXT, st.lists(TEXT, min_size=1, max_size=8)))
def test_text_is_never_taken_for_less_than_characters_over_four(endpoint, name, value):
    asked = asking(endpoint, **{name: value})
    texts = [value] if isinstance(value, str) else value
    estimate = KINDS[endpoint].estimate(asked)
    characters = sum(map(len, texts))
    assert characters <= 4 * estimate < characters + 4 * len(texts)
    assert KINDS[endpoint].prompt(asked).texts == tuple(texts)


@given(value=INPUTS, more=TEXT)
def test_more_text_is_never_less(value, more):
    if isinstance(value, str):
        assert estimate_of([value, more]) > estimate_of(value)
    elif isinstance(value[0], str):
        assert estimate_of([*value, more]) > estimate_of(value)
        assert count_of([*value, more]) == count_of(value) + 1
    elif isinstance(value[0], int):
        assert estimate_of([*value, 0]) == estimate_of(value) + 1
        assert count_of([*value, 0]) == count_of(value) == 1


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_required_parameter"),
        ("", "missing_required_parameter"),
        ([""], None),
        (["Hi", ""], None),
        ([[1], []], None),
    ],
)
def test_nothing_is_no_input_and_may_be_a_prompt(value, code):
    with pytest.raises(InvalidRequest) as caught:
        asking("embeddings", input=value)
    assert (caught.value.param, caught.value.code) == ("input", code)
    asked = asking("text_completion", prompt=value)
    assert asked.choices == count_of(value) == (len(value) if isinstance(value, list) else 1)


@pytest.mark.parametrize(("endpoint", "name"), ENDPOINTS.items())
@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "missing_required_parameter"),
        (5, "invalid_type"),
        (True, "invalid_type"),
        ({"text": "Hi"}, "invalid_type"),
        (["Hi", 5], "invalid_type"),
        ([5, "Hi"], "invalid_type"),
        ([[1], "Hi"], "invalid_type"),
        ([[1], 5], "invalid_type"),
        ([None], "invalid_type"),
        ([1.5], "invalid_type"),
        ([-1], "invalid_type"),
        ([True], "invalid_type"),
        ([[True]], "invalid_type"),
        ([[[1]]], "invalid_type"),
        ([{}], "invalid_type"),
        (["Hi"] * (MAX_INPUTS + 1), "array_above_max_length"),
        ([[1]] * (MAX_INPUTS + 1), "array_above_max_length"),
    ],
)
def test_what_is_refused(endpoint, name, value, code):
    with pytest.raises(InvalidRequest) as caught:
        asking(endpoint, **{name: value})
    assert (caught.value.param, caught.value.code) == (name, code)


def test_as_many_as_there_may_be():
    assert estimate_of(asking("embeddings", input=["Hi"] * MAX_INPUTS).body["input"]) == MAX_INPUTS
    # Token ids of one text are not several texts.
    assert estimate_of(asking("embeddings", input=[7] * (MAX_INPUTS + 1)).body["input"]) == MAX_INPUTS + 1
