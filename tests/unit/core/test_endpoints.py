"""Which paths are passed on, to teams that were opened to what is kept at OpenAI."""

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.endpoints import Passed, never_open, passed

PASSED = {
    ("GET", "/files"): ("files", False),
    ("POST", "/files"): ("files", False),
    ("GET", "/files/file-1/content"): ("files", False),
    ("DELETE", "/files/file-1"): ("files", False),
    ("POST", "/batches"): ("batches", True),
    ("GET", "/batches/batch_1"): ("batches", False),
    ("POST", "/batches/batch_1/cancel"): ("batches", False),
    ("POST", "/uploads/u/parts"): ("uploads", False),
    ("POST", "/vector_stores/vs_1/search"): ("vector_stores", True),
    ("POST", "/fine_tuning/jobs"): ("fine_tuning", True),
    ("GET", "/fine_tuning/checkpoints/ft:gpt-4o-mini:org::a1/permissions"): ("fine_tuning", False),
    ("GET", "/fine_tuning/checkpoints/ft%3Agpt-4o-mini%3Aorg/permissions"): ("fine_tuning", False),
    ("GET", "/chat/completions"): ("stored_chat", False),
    ("GET", "/chat/completions/chatcmpl-1/messages"): ("stored_chat", False),
    ("POST", "/chat/completions/chatcmpl-1"): ("stored_chat", False),
    ("GET", "/responses/resp_1"): ("stored_responses", False),
    ("POST", "/responses/resp_1/cancel"): ("stored_responses", False),
    ("POST", "/responses/compact"): ("stored_responses", True),
    ("GET", "/conversations/conv_1/items"): ("conversations", False),
    ("POST", "/assistants"): ("assistants", False),
    ("POST", "/threads/runs"): ("threads", True),
    ("POST", "/containers"): ("containers", True),
    ("POST", "/evals/e/runs"): ("evals", True),
    ("POST", "/videos"): ("videos", True),
    ("GET", "/skills"): ("skills", False),
    ("POST", "/audio/voices"): ("voices", False),
}
NOT_PASSED = [
    ("POST", "/chat/completions"), ("PUT", "/chat/completions"), ("GET", "/responses"), ("POST", "/responses"),
    ("GET", "/audio/speech"), ("GET", "/organization/users"), ("POST", "/projects/p/roles"), ("GET", "/models"),
    ("POST", "/realtime/client_secrets"), ("POST", "/chatkit/sessions"), ("TRACE", "/files"), ("CONNECT", "/files"),
    ("OPTIONS", "/files"), ("BREW", "/files"), ("GET", "/Files"), ("GET", "/filesystem"), ("GET", "files"),
    ("GET", "/files/"), ("GET", "//files"), ("GET", "/files//x"), ("GET", "/files/../organization/users"),
    ("GET", "/files/."), ("GET", "/files/.."), ("GET", "/files/%2e%2e/organization"), ("GET", "/files/%2E%2e/x"),
    ("GET", "/files/..%2forganization"), ("GET", "/files/a%2Fb"), ("GET", "/files/a%5cb"), ("GET", "/files/a\\b"),
    ("GET", "/files/%252e%252e/x"), ("GET", "/files/..;/organization"), ("GET", "/files/a#b"), ("GET", "/files/a b"),
    ("GET", "/files/%00"), ("GET", "/files/%7F"), ("GET", "/files/%zz"), ("GET", "/files/%2"), ("GET", "/files/\u00e9"),
    ("GET", "/%66iles"), ("GET", ""), ("GET", "/"), ("GET", "/chat"), ("GET", "/files/a\n"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PASSED)
def test_passed(method, path):
    assert passed(method, path) == Passed(*PASSED[method, path])


@pytest.mark.parametrize(("method", "path"), NOT_PASSED)
def test_not_passed(method, path):
    assert passed(method, path) is None


@given(
    segments=st.lists(
        st.sampled_from(["files", "..", ".", "", "%2e", "%2E%2E", "organization", "a", "%2f", "%25", ";", "batches"])
        | st.text("ab%.2eEfF/\\", max_size=5),
        max_size=4,
    )
)
def test_no_reading_of_a_path_that_is_passed_leads_elsewhere(segments):
    path = "/files/" + "/".join(segments)
    if passed("GET", path) is None:
        return
    for _ in range(3):
        path = unquote(path)
        assert re.search(r"(^|[/\\])\.{0,2}([/\\]|$)", path[1:]) is None
    assert path.startswith("/files/")


def test_the_set_of_names_is_bounded():
    assert len({found.endpoint for (method, path) in PASSED if (found := passed(method, path))}) == 15


def test_what_is_never_open():
    assert never_open("/organization")
    assert never_open("/organization/admin_api_keys")
    assert not never_open("/organizations")
    assert not never_open("/files")
