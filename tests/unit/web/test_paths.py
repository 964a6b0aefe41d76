"""Where paths lead, whatever an SDK calls them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.web.paths import Place, place_of, without_api_version

BASES = ("/v1", "/openai/v1", "/openai")


@pytest.mark.parametrize("base", BASES)
def test_every_spelling_of_a_path_is_one_place(base):
    assert place_of(f"{base}/chat/completions") == Place("/chat/completions")
    assert place_of(f"{base}/models/gpt-4o%2Fmini") == Place("/models/gpt-4o%2Fmini")
    assert place_of(f"{base}/deployments/gpt-4o/chat/completions") == Place("/chat/completions", "gpt-4o")
    assert place_of(f"{base}/deployments/openai%2Fgpt%204o/embeddings") == Place("/embeddings", "openai/gpt 4o")


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v2/models", "/V1/models", "/openai", "/OpenAI/models", "/chat/completions",
     "/deployments/m/embeddings", "/v1/deployments/", "/v1/deployments/gpt-4o", "/v1/deployments//embeddings",
     "/openai/deployments/gpt-4o", "//v1/models", "/x/openai/models", "/v1/deployments/a%0Ab/images/edits",
     "/openai/deployments/a%0d%0a--b%0D%0A/images/edits", "/openai/deployments/a%00/embeddings"],
)  # fmt: skip
def test_what_could_not_be_the_api_is_nowhere(path):
    assert place_of(path) is None


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1//files", Place("//files")),
        ("/v1/%66iles", Place("/%66iles")),
        ("/v1/models/../files", Place("/models/../files")),
        ("/openai/v1", Place("/v1")),
        ("/openai/v2/models", Place("/v2/models")),
        ("/openai/v1/deployments/m/", Place("/", "m")),
        ("/v1/deployments/a%2Fb/../files", Place("/../files", "a/b")),
    ],
)
def test_nothing_is_made_of_a_path_but_what_it_says(path, place):
    assert place_of(path) == place


@given(st.text(min_size=1).filter(lambda name: name.isprintable()), st.sampled_from(BASES))
def test_any_name_of_a_deployment_comes_back(name, base):
    assert place_of(f"{base}/deployments/{quote(name, safe='')}/completions") == Place("/completions", name)


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("", ""),
        ("beta=true", "beta=true"),
        ("api-version=2024-10-21", ""),
        ("api-version=2024-10-21&beta=true", "beta=true"),
        ("beta=true&api-version=preview&x=%2F&api-version=", "beta=true&x=%2F"),
        ("api-version", ""),
        ("x-api-version=1&after=api-version", "x-api-version=1&after=api-version"),
        ("&&a=1&api-version=1&", "&&a=1&"),
    ],
)
def test_the_version_of_azures_api_is_left_out_and_nothing_else(query, left):
    assert without_api_version(query) == left
