import pytest

from proxy.core.asked import Asked
from proxy.core.keys import ParsedKey
from proxy.core.principal import KeySecret, Team
from proxy.pipeline.exchange import Reply
from proxy.ports import CacheAddress, CachedAnswer, Patch, UpstreamRequest

HEADERS = (("X-Name", "secret"),)


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (ParsedKey("kid", "secret"), "ParsedKey(kid='kid')"),
        (Patch(1, 2, b"secret"), "Patch(start=1, end=2)"),
        (
            Asked({"user": "secret"}, b'{"user":"secret"}', "gpt-4o"),
            (
                "Asked(model='gpt-4o', stream=False, include_usage=False, choices=1, generated=1, "
                "max_output_tokens=None, max_output_param='max_tokens', service_tier=None, billed=True, "
                "tells_cost=True, state=None)"
            ),
        ),
        (
            KeySecret(1, 2, b"secret", 3),
            "KeySecret(serial=1, pepper_id=2, created_at_ms=3, ends_at_ms=None, imported=False)",
        ),
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


def test_of_a_team_all_is_shown_but_what_its_digests_are_made_under():
    team = Team("growth", "free", 1, cache_secret=b"secret", cache_salts={"gpt-4o": b"secret"})
    assert "secret" not in repr(team)
    assert repr(team).startswith("Team(name='growth', tier='free', tier_since_ms=1, limits=None, cache_mode=")
