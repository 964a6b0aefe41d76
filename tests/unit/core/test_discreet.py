import pytest

from proxy.core.keys import ParsedKey
from proxy.pipeline.exchange import Reply
from proxy.ports import CacheAddress, CachedAnswer, Patch, UpstreamRequest

HEADERS = (("X-Name", "secret"),)


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (ParsedKey("kid", "secret"), "ParsedKey(kid='kid')"),
        (Patch(1, 2, b"secret"), "Patch(start=1, end=2)"),
        (
            UpstreamRequest("POST", "/x", HEADERS, b"secret", model="m"),
            "UpstreamRequest(method='POST', path_qs='/x', as_it_is=False, model='m')",
        ),
        (CacheAddress("growth", b"secret", b"secret"), "CacheAddress(team='growth')"),
        (Reply(200, (("a", "b"),), b"secret"), "Reply(status=200, headers=(('a', 'b'),), error_code='')"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_for_showing_is_not_shown(record, shown):
    assert repr(record) == str(record) == f"{record}" == shown
    assert "secret" not in str(record.__rich_repr__())
    assert "secret" not in f"{[record]} {ValueError(record)!r}"


def test_of_a_kept_answer_all_is_shown_but_its_body():
    kept = CachedAnswer(200, (), b"secret", "m", 1, 2, 3, 4, 5)
    assert "secret" not in repr(kept)
    assert "CachedAnswer(status=200, headers=(), model='m', stored_at_ms=1, ttl_ms=2" in repr(kept)
