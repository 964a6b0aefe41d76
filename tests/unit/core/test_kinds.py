"""What the table says of every endpoint, and of those that are never streamed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import InvalidRequest
from proxy.core.estimate import IMAGE_TOKENS, estimate_output
from proxy.core.kinds import KINDS
from proxy.core.moderations import DEFAULT_MODEL
from proxy.core.strict_json import parse_object
from proxy.core.usage import Usage

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
LINK = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
EMBED = {"model": "text-embedding-3-small", "input": "Hi"}


def asking(endpoint, **fields):
    raw = json.dumps(fields).encode()
    return KINDS[endpoint].parse(parse_object(raw), raw)


def refused(endpoint, **fields):
    with pytest.raises(InvalidRequest) as caught:
        asking(endpoint, **fields)
    return caught.value.param


FIELDS = st.sampled_from(
    ["input", "prompt", "messages", "n", "best_of", "max_tokens", "stream", "stream_options", "tools", "store",
     "conversation", "max_output_tokens", "temperature", "instructions", "metadata", "audio", "modalities"]
)  # fmt: skip
MEMBERS = st.sampled_from(["type", "role", "content", "text", "image_url", "url", "id", "tool_calls", "file_id"])
LEAVES = st.none() | st.booleans() | st.integers(-3, 300) | st.text(max_size=3) | st.sampled_from(["user", "text"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=3), max_leaves=6
)


@pytest.mark.parametrize("endpoint", KINDS)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=6))
def test_whatever_comes_is_refused_or_estimated(endpoint, fields):
    raw = json.dumps({"model": "m", **fields}).encode()
    kind = KINDS[endpoint]
    try:
        asked = kind.parse(parse_object(raw), raw)
    except InvalidRequest:
        return
    assert asked.raw == raw
    assert kind.estimate(asked) >= 0
    assert kind.prompt(asked).more_tokens >= 0
    assert estimate_output(asked, 100, None) >= 0
    assert isinstance(kind.nondeterminism(asked.body), str | None)


WHOLE = {
    "model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x", "voice": "alloy",
    "images": [{"image_url": "data:image/png;base64,AAAA"}],
}  # fmt: skip
NOT_AS_JSON = {"image_variation", "transcription", "translation"}


@pytest.mark.parametrize("endpoint", [name for name in KINDS if name not in NOT_AS_JSON])
def test_another_case_is_no_other_name(endpoint):
    whole = {name: value for name, value in WHOLE.items() if name != "prompt" or "responses" not in endpoint}
    assert asking(endpoint, **whole).model == "m"
    assert asking(endpoint, **whole, Xmodel="other").model == "m"
    for name in ("Model", "MODEL", "mOdel"):
        assert refused(endpoint, **whole, **{name: "other"}) == name
        assert refused(endpoint, **{name: None}, **whole) == name


def test_no_letter_that_is_another_in_lower_case_is_taken_for_it():
    for name in ("max_to\u212aens", "\u017ftream", "Previous_Response_ID", "N"):
        endpoint = "responses" if name.startswith("Prev") else "chat"
        whole = {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x"}
        assert refused(endpoint, **whole, **{name: 1}) == name


@pytest.mark.parametrize("endpoint", KINDS)
@given(body=st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b'{"usage":5}', b'{"results":5}', b"[" * 5_000]))
def test_an_answer_that_is_none_is_not_kept(endpoint, body):
    read = KINDS[endpoint].read(body)
    assert not read.storable
    assert read.counted_output_tokens >= 0


def test_every_endpoint_has_a_path_of_its_own():
    assert len({kind.path for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("endpoint", ["embeddings", "moderations"])
def test_no_output_is_reserved(endpoint):
    assert estimate_output(asking(endpoint, **EMBED), 1_024, None) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", 5), ("model", ""), ("model", None), ("dimensions", 0), ("dimensions", "many"), ("dimensions", True),
     ("dimensions", 2**40), ("encoding_format", 64), ("user", 5)],
)  # fmt: skip
def test_an_embedding_that_is_refused(field, value):
    assert refused("embeddings", **{**EMBED, field: value}) == field


def test_what_an_embedding_says():
    body = b'{"object":"list","data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}'
    read = KINDS["embeddings"].read(body)
    assert (read.usage, read.storable) == (Usage(7, 0), True)
    assert KINDS["embeddings"].nondeterminism({"input": "Hi"}) is None


def test_a_moderation_without_a_model():
    assert asking("moderations", input="Hi").model == DEFAULT_MODEL
    assert asking("moderations", input="Hi", model=None).model == DEFAULT_MODEL
    assert asking("moderations", input="Hi", model="omni-moderation-2024-09-26").model == "omni-moderation-2024-09-26"


@given(texts=st.lists(st.text(max_size=30), max_size=5), pictures=st.integers(0, 4))
def test_a_moderation_reads_texts_and_pictures(texts, pictures):
    parts = [*({"type": "text", "text": text} for text in texts), *[PICTURE] * pictures]
    if parts:
        asked = asking("moderations", input=parts)
        estimate = KINDS["moderations"].estimate(asked)
        assert estimate >= pictures * IMAGE_TOKENS + -(-sum(map(len, texts)) // 4)
        said = KINDS["moderations"].prompt(asked)
        assert (said.texts, said.more_tokens) == (tuple(texts), pictures * IMAGE_TOKENS)
    if texts:
        assert KINDS["moderations"].estimate(asking("moderations", input=texts)) == sum(-(-len(t) // 4) for t in texts)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "input"),
        ([], "input"),
        (5, "input"),
        ({}, "input"),
        (["Hi"] * 2_049, "input"),
        ([5], "input[0]"),
        (["Hi", PICTURE], "input[0]"),
        ([PICTURE, "Hi"], "input[1]"),
        ([{}], "input[0].type"),
        ([{"type": "video"}], "input[0].type"),
        ([{"type": []}], "input[0].type"),
        ([{"type": "text"}], "input[0].text"),
        ([{"type": "text", "text": 5}], "input[0].text"),
        ([{"type": "image_url"}], "input[0].image_url"),
        ([{"type": "image_url", "image_url": "https://x"}], "input[0].image_url"),
        ([PICTURE, {"type": "image_url", "image_url": {}}], "input[1].image_url.url"),
    ],
)
def test_a_moderation_that_is_refused(value, param):
    assert refused("moderations", input=value) == param


def test_a_moderation_of_what_is_elsewhere_may_change():
    check = KINDS["moderations"].nondeterminism
    assert check({"input": "Hi"}) is None
    assert check({"input": [PICTURE]}) is None
    assert check({"input": [PICTURE, LINK]}) == "image_url"


def test_what_a_moderation_says():
    read = KINDS["moderations"].read
    found = read(b'{"id":"modr-1","model":"m","results":[{"flagged":false}]}')
    assert (found.usage, found.storable, found.counted_output_tokens) == (None, True, 0)
    assert not read(b'{"results":[]}').storable
