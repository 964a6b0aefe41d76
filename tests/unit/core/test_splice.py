"""Another model's name, and every other byte as it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.splice import with_model

texts = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"gpt-4o","n":1}', b'{"model":"dep","n":1}'),
        (b'\n{ "a" : [1.50],\t"model" :\r\n "gpt-4o" } ', b'\n{ "a" : [1.50],\t"model" :\r\n "dep" } '),
        (b'{"metadata":{"model":"gpt-4o"},"model":"gpt-4o"}', b'{"metadata":{"model":"gpt-4o"},"model":"dep"}'),
        (b' {"input":"x"}', b' {"model":"dep","input":"x"}'),
        (b"{ }", b'{"model":"dep" }'),
        (b'{"m\\u006fdel":"gpt-4o"}', b'{"m\\u006fdel":"dep"}'),
        ('{"é":"\\u00e9","model":"x"}'.encode(), '{"é":"\\u00e9","model":"dep"}'.encode()),
    ],
)  # fmt: skip
def test_only_the_name_is_another(before, after):
    assert with_model(before, "dep") == after


@given(
    st.dictionaries(texts, texts | st.integers() | st.lists(texts)),
    texts,
    texts,
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_whatever_stands_around_it(members, old, new, indent, ensure_ascii):  # fmt: skip
    body = {**members, "model": old}
    raw = json.dumps(body, indent=indent, ensure_ascii=ensure_ascii).encode()
    spliced = with_model(raw, new)
    assert json.loads(spliced) == {**body, "model": new}
    assert with_model(spliced, old) == with_model(raw, old)
