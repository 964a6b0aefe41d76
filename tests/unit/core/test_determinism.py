import pytest

from proxy.core.determinism import WAIVABLE, nondeterminism

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
FIXED = {**ASK, "temperature": 0}
PNG = "data:image/png;base64,iVBORw0KGgo="


def said(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def file(**said):
    return {"type": "file", "file": said}


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0},
        {"temperature": 0.0},
        {"temperature": 0, "top_p": 1},
        {"top_p": 0},
        {"top_p": 0, "temperature": 2},
        {"seed": 0},
        {"seed": -7, "temperature": 1.5},
    ],
)
def test_what_asks_for_one_answer(more):
    assert nondeterminism({**ASK, **more}) is None


@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": None}, {"temperature": 0.01}, {"temperature": 1}, {"top_p": 0.1}, {"top_p": None},
     {"seed": None}, {"temperature": 1, "top_p": 0.5}],
)  # fmt: skip
def test_what_asks_for_any_answer(more):
    assert nondeterminism({**ASK, **more}) == "temperature"
    assert "temperature" in WAIVABLE


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"data_sources": [{"type": "azure_search"}]}, "data_sources"),
        ({"plugins": [{"id": "web"}]}, "plugins"),
        ({"search_parameters": {"mode": "auto"}}, "search_parameters"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"audio": {}}, "audio"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "audio"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_url": "https://mcp.example"}]}, "tools"),
        ({"tools": [{"type": "image_generation"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]}, "tools"),
        ({"tools": ["?"]}, "tools"),
        ({"tools": [{"type": []}]}, "tools"),
        ({"tools": [{"type": {}}]}, "tools"),
        ({"tools": [{}]}, "tools"),
        ({"model": "gpt-4o-search-preview"}, "model"),
        ({"model": "gpt-5-search-api"}, "model"),
        ({"model": "o3-deep-research-2025-06-26"}, "model"),
        ({"model": "openai/gpt-4o:online"}, "model"),
        ({"messages": said(file(file_id="file-1"))}, "file"),
        ({"messages": said(file(file_id="file-1", file_data="JVBERi0="))}, "file"),
        ({"messages": said(file(filename="a.pdf"))}, "file"),
        ({"messages": said({"type": "file"})}, "file"),
    ],
    ids=str,
)
def test_state_and_the_world_of_the_moment_are_refused_always(more, reason):
    assert nondeterminism({**FIXED, **more}) == reason
    assert reason not in WAIVABLE
    # Named before whatever a team may waive, or waiving that would waive this.
    remote = more.get("messages", []) + said(image("https://example.com/a.png"), {"type": "video_url"})
    assert nondeterminism({**ASK, **more, "messages": remote}) == reason


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (image("https://example.com/cat.png"), "image_url"),
        (image("HTTP://example.com/cat.png"), "image_url"),
        (image(None), "image_url"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "image_url", "image_url": "https://example.com/cat.png"}, "image_url"),
        ({"type": "video_url", "video_url": {"url": "https://example.com/cat.mp4"}}, "content"),
        ({"type": ["text"]}, "content"),
        ({}, "content"),
    ],
    ids=str,
)
def test_what_is_somewhere_else_may_be_another_tomorrow(part, reason):
    assert nondeterminism({**FIXED, "messages": said(part)}) == reason
    assert reason in WAIVABLE


@pytest.mark.parametrize(
    "more",
    [
        {"store": False},
        {"store": None},
        {"background": False},
        {"web_search_options": None},
        {"modalities": ["text"]},
        {"modalities": None},
        {"tools": None},
        {"tools": []},
        {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "g"}}]},
        {"tool_choice": "none"},
        {"service_tier": "flex"},
        {"model": "gpt-5-research"},
        {"messages": said(image(PNG))},
        {"messages": said(image(PNG.replace("data", "DATA")))},
        {"messages": said({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}})},
        {"messages": said(file(filename="a.pdf", file_data="data:application/pdf;base64,JVBERi0="))},
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "5"}]},
        {"messages": [{"role": "assistant", "audio": None, "content": "Hi"}]},
    ],
    ids=str,
)
def test_what_says_all_it_means_changes_nothing(more):
    assert nondeterminism({**FIXED, **more}) is None
