import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.names import (
    MAX_LABEL_CHARACTERS,
    MAX_MODEL_CHARACTERS,
    MAX_MODELS,
    checked_label,
    checked_model,
    checked_models,
    checked_name,
    checked_tier,
)
from proxy.core.registry import BadName, BadValue

ODD = [
    "two\nlines",
    "\x00",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\u200b",
    "\u202egnp.exe",
    "\u2028",
    "\ufeff",
    "\ue000",
    "\U000e0041",
    "\ud800",
]
"""Controls, marks of direction, private use, tags, lone surrogates."""
PRINTABLE = [
    "'; DROP TABLE teams; --",
    '"',
    "%s%n",
    "{0}",
    "${x}",
    "日本",
    "é",
    "e\u0301",
    "🚀",
    "../../etc",
    "a" * 200,
]


@pytest.mark.parametrize("text", ODD)
def test_what_cannot_be_printed_is_no_name(text):
    for check in (checked_label, checked_model):
        with pytest.raises(BadValue):
            check(text)
    with pytest.raises(BadValue, match="models"):
        checked_models(frozenset({"gpt-5", text}))
    with pytest.raises(BadValue, match="shadow_tier"):
        checked_tier("shadow_tier", text)
    with pytest.raises(BadName):
        checked_name(text)


@pytest.mark.parametrize("text", PRINTABLE)
def test_what_can_be_printed_is_a_label_and_a_model_as_it_stands(text):
    assert checked_label(text) == checked_model(text) == text
    assert checked_models(frozenset({text})) == {text}
    with pytest.raises(BadName):
        checked_name(text)


def test_lengths_are_bounded():
    assert checked_label("") == ""
    assert checked_label("x" * MAX_LABEL_CHARACTERS)
    with pytest.raises(BadValue, match="200"):
        checked_label("x" * (MAX_LABEL_CHARACTERS + 1))
    assert checked_model("x" * MAX_MODEL_CHARACTERS)
    for model in ("", "x" * (MAX_MODEL_CHARACTERS + 1)):
        with pytest.raises(BadValue, match="256"):
            checked_model(model)
    names = [str(number) for number in range(MAX_MODELS + 1)]
    assert len(checked_models(frozenset(names[:-1]))) == MAX_MODELS
    with pytest.raises(BadValue, match="1,000"):
        checked_models(frozenset(names))
    assert checked_tier("tier", "x" * 64)
    for tier in ("", "x" * 65, "gold tier", "gold\n"):
        with pytest.raises(BadValue, match="tier"):
            checked_tier("tier", tier)


def test_all_models_are_none_and_no_model_is_a_set_without_any():
    assert checked_models(None) is None
    assert checked_models(frozenset()) == frozenset()


@given(st.text(max_size=220))
def test_a_label_that_is_taken_is_one_bounded_line(text):
    try:
        taken = checked_label(text)
    except BadValue:
        assert len(text) > MAX_LABEL_CHARACTERS or not text.isprintable()
        return
    assert taken == text
    assert len(text.splitlines()) <= 1
    assert len(text.encode()) <= 4 * MAX_LABEL_CHARACTERS


@given(st.text(st.characters(codec="ascii"), max_size=70) | st.text(max_size=5))
def test_the_name_of_a_team_is_safe_everywhere(text):
    try:
        checked_name(text)
    except BadName:
        return
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert text[0] not in "._-"
    assert 0 < len(text) < 64
