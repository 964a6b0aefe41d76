"""What an answer from the cache counts as, and how long it is good for, as the settings say."""

from __future__ import annotations

import re

import pytest

from tests.support.tollgate_process import run_tollgate

BODY = {"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": "Count me."}]}


@pytest.mark.parametrize(("hits_count", "left"), [("requests", [0, None, None]), ("nothing", [1, 1, 1])])
def test_a_hit_counts_as_the_settings_say(simulator, session, tmp_path, hits_count, left):
    settings = f"[limits]\nhits_count = '{hits_count}'\n[cache]\nttl_seconds = 300\n"
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings) as gateway:
        # A request comes back every minute: not while this runs.
        team = gateway.add_team("growth", requests_per_minute=1, request_capacity=2, tokens_per_minute=10_000)
        first, *others = (
            session.post(f"{gateway.base_url}/chat/completions", json=BODY, headers=team.headers, timeout=30)
            for _ in range(4)
        )
        assert first.status_code == 200
        assert int(first.headers["x-ratelimit-remaining-requests"]) == 1
        for answer, remaining in zip(others, left, strict=True):
            if remaining is None:
                assert answer.status_code == 429
                continue
            assert re.fullmatch(r"tollgate; hit; ttl=(300|2[4-9]\d)", answer.headers["Cache-Status"])
            assert int(answer.headers["x-ratelimit-remaining-requests"]) == remaining
            assert 9_900 < int(answer.headers["x-ratelimit-remaining-tokens"]) <= 10_000
