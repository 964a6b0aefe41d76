import json

import pytest

from proxy.simulator.models import ModelKind, list_body, model_body, resolve
from proxy.simulator.refusal import Refusal


def test_the_list_names_what_every_program_asks_for():
    listed = json.loads(list_body())
    assert listed["object"] == "list"
    names = [entry["id"] for entry in listed["data"]]
    assert {"gpt-4o-mini", "gpt-4o", "gpt-4.1-mini", "text-embedding-3-small"} <= set(names)
    assert len(names) == len(set(names))
    for entry in listed["data"]:
        assert json.loads(model_body(entry["id"])) == entry


@pytest.mark.parametrize(
    ("model", "snapshot"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "ft:gpt-4o-mini-2024-07-18:acme::abc"),
    ],
)
def test_an_alias_is_answered_by_its_snapshot(model, snapshot):
    assert resolve(model, ModelKind.CHAT) == snapshot


@pytest.mark.parametrize("model", ["gpt-9", "", "ft:gpt-9:acme"])
def test_models_that_do_not_exist(model):
    with pytest.raises(Refusal) as caught:
        resolve(model, ModelKind.CHAT)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_an_embedding_model_does_not_chat():
    with pytest.raises(Refusal) as caught:
        resolve("text-embedding-3-small", ModelKind.CHAT)
    assert caught.value.status == 404
