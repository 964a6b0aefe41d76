"""SIGTERM while several clients listen to one call."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest
import requests

from tests.support.tollgate_process import run_tollgate

ASK = {"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": "How long?"}], "stream": True}


def test_what_outlasts_the_drain_is_cut_for_all_and_charged_once(simulator, tmp_path, session):
    settings = "[server]\ndrain_seconds = 0.5\n"
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings) as gateway, ExitStack() as stack:
        team = gateway.add_team("growth")
        headers = {**team.headers, "x-simulate-chunk-ms": "600000"}
        url = f"{gateway.base_url}/chat/completions"
        answers = [
            stack.enter_context(session.post(url, json=ASK, headers=headers, stream=True, timeout=30)) for _ in range(3)
        ]
        lines = [answer.iter_lines() for answer in answers]
        assert len({next(each) for each in lines}) == 1
        assert [answer.headers["Cache-Status"] for answer in answers] == [
            "tollgate; fwd=uri-miss", *["tollgate; fwd=uri-miss; collapsed"] * 2,
        ]  # fmt: skip
        gateway.signal(signal.SIGTERM)
        for each in lines:
            heard = []
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                heard.extend(line for line in each if line)
            assert b'"code":"server_is_overloaded"' in heard[-1]
        assert gateway.wait() == 0
        assert "Traceback" not in gateway.stderr
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"]) == ("unavailable", 1)
    assert event["output_tokens"] >= 1
