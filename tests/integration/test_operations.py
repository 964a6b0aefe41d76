"""What operators see: metrics that tie out, health, a log; and no secret in any of it or on disk."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.tollgate_process import eventually, run_tollgate

MODEL = "gpt-4o-mini"
SPOKEN = "Marmalade-and-basalt-47"
"""Text of a body, to be found nowhere."""


def ask(text=f"echo:{SPOKEN}", **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


class Samples:
    """The samples of an exposition, each once."""

    def __init__(self, text):
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self._values
                self._values[key] = sample.value

    def __call__(self, name, **labels):
        return self._values.get((name, frozenset(labels.items())))

    def total(self, name, **labels):
        wanted = set(labels.items())
        return sum(value for (each, has), value in self._values.items() if each == name and wanted <= has)


def idle(samples):
    return None if samples("tollgate_in_flight_requests") else samples


def test_metrics_tie_out(gateway, call, new_team, upstream):
    # One comes back in a minute: not while this runs.
    team = new_team(requests_per_minute=1, request_capacity=6)
    plain, streamed = call(ask(), by=team), call(ask(stream=True, max_tokens=4), by=team)
    kept = ask(temperature=0)
    answers = [plain, streamed, call(kept, by=team), call(kept, by=team)]
    assert {answer.status_code for answer in answers} == {200}
    assert call(ask(), {"x-simulate-status": "422"}, by=team).status_code == 422
    assert call(ask(), {"x-simulate-id": team.name, "x-simulate-times": "1", "x-simulate-status": "500"}, by=team).ok
    assert call(ask(), by=team).status_code == 429
    assert call(b"{", by=team).status_code == 400

    stats = upstream.idle_stats()
    samples = eventually(lambda: idle(Samples(gateway.metrics())), what="the end of every request")
    here = {"team": team.name, "model": MODEL}
    expected = {"ok": 4, "cached": 1, "upstream_error": 1, "limited": 1, "client_gone": 0}
    for outcome, count in expected.items():
        assert samples("tollgate_requests_total", **here, endpoint="chat", outcome=outcome) == count
    # What could not be read has no model.
    rejected = {"team": team.name, "model": "", "endpoint": "chat", "outcome": "rejected"}
    assert samples("tollgate_requests_total", **rejected) == 1
    assert samples("tollgate_tokens_total", **here, kind="input") == stats["input_tokens"]
    assert samples("tollgate_tokens_total", **here, kind="output") == stats["output_tokens"]
    paid = stats["input_tokens"] * 150_000 + stats["output_tokens"] * 600_000
    assert samples("tollgate_spend_usd_total", **here) == pytest.approx(paid / 1e12, rel=1e-12)
    assert len(gateway.events(team.name, 6)) == 6
    (row,) = json.loads(gateway.cli("usage", "--by", "team,model", "--team", team.name, "--json"))
    assert samples("tollgate_saved_tokens_total", **here) == row["saved_input_tokens"] + row["saved_output_tokens"] > 0
    assert samples("tollgate_tokens_total", **here, kind="input") == row["input_tokens"]
    assert samples("tollgate_tokens_total", **here, kind="output") == row["output_tokens"]
    assert samples("tollgate_saved_usd_total", **here) == pytest.approx(float(row["saved_usd"]), rel=1e-12)
    assert samples("tollgate_spend_usd_total", **here) == pytest.approx(float(row["cost_usd"]), rel=1e-12)
    assert samples.total("tollgate_cache_requests_total", team=team.name, result="hit") == row["cached"]
    assert samples("tollgate_rate_limited_total", team=team.name, limit="requests") == 1
    for result, count in {"hit": 1, "miss": 1, "bypass": 5}.items():
        assert samples.total("tollgate_cache_requests_total", team=team.name, result=result) == count
    assert samples("tollgate_limit_used_ratio", team=team.name, dimension="requests") == 1
    assert samples("tollgate_retries_total", upstream="openai", reason="status_500") >= 1
    assert samples("tollgate_in_flight_requests") == 0
    assert samples.total("tollgate_request_duration_seconds_count") == samples.total("tollgate_requests_total")
    assert samples.total("tollgate_time_to_first_token_seconds_count", model=MODEL) >= 1


def test_teams_are_there_before_their_first_request(gateway, new_team):
    team = new_team()

    def look():
        return Samples(gateway.metrics())("tollgate_rate_limited_total", team=team.name, limit="tokens")

    assert eventually(lambda: look() is not None, what="the team's counters")
    assert look() == 0


def test_models_that_a_client_makes_up_do_not_become_labels(gateway, call):
    assert call(ask(model="made-up-by-a-client")).status_code == 404
    other = {"model": "_other", "outcome": "rejected"}
    eventually(lambda: Samples(gateway.metrics()).total("tollgate_requests_total", **other), what="its count")
    assert "made-up-by-a-client" not in gateway.metrics()


def test_health(gateway, session):
    for path, body in [
        ("/healthz", {"status": "ok"}),
        ("/readyz", {"status": "ready", "stores": {"database": "ok"}}),
    ]:
        answer = session.get(f"{gateway.operations_url}{path}", timeout=10)
        assert (answer.status_code, answer.json()) == (200, body)
    assert session.get(f"{gateway.operations_url}/v1/models", timeout=10).status_code == 404


def test_one_line_a_request(gateway, call, team):
    answers = [
        call(ask(), {"X-Request-ID": "mine-1"}),
        call(ask(stream=True)),
        call(b"{"),
        call(ask(), {"Authorization": "Bearer nobody"}),
    ]
    lines = [gateway.logged(answer.headers["x-request-id"]) for answer in answers]
    assert [line["status"] for line in lines] == [200, 200, 400, 401]
    assert [line["team"] for line in lines] == [team.name, team.name, team.name, None]
    assert lines[0]["client_request_id"] == "mine-1"
    assert lines[0]["key_id"] == team.kid
    assert lines[0]["output_tokens"] == -(-len(SPOKEN) // 4)
    assert lines[1]["ttft_ms"] <= lines[1]["duration_ms"]
    assert all(line["overhead_ms"] <= line["duration_ms"] for line in lines)
    assert lines[2]["error_code"] == "invalid_request_error"


def test_no_secret_anywhere(simulator, tmp_path, session):
    """Of a server's whole life: keys and what was said are in no log, no metric and no file."""
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        team = gateway.add_team("discreet")
        url = f"{gateway.base_url}/chat/completions"
        made_up = "sk-tg_" + "a" * 61
        kept = ask(temperature=0)
        for body, headers in [
            (ask(), {}),
            (ask(stream=True), {}),
            (kept, {}),
            (kept, {}),
            ({**ask(), "n": SPOKEN}, {}),
            (ask(model=SPOKEN), {}),
            (ask(), {"x-simulate-status": "401"}),
            (ask(), {"x-simulate-reset": "1"}),
            (ask(), {"Authorization": f"Bearer {made_up}"}),
            (ask(), {"Authorization": f"Basic {team.key}"}),
            (ask(), {"X-Request-ID": f"{SPOKEN} {team.key}"}),
        ]:
            session.post(url, json=body, headers={**team.headers, **headers}, timeout=30)
        session.get(f"{gateway.base_url}/{team.key}?key={team.key}", headers=team.headers, timeout=30)
        gateway.events(team.name, 7)
        places = {"stdout": gateway.stdout, "stderr": gateway.stderr, "metrics": gateway.metrics()}
        alive = _files(gateway.data_dir)
        assert alive, "a data directory with something in it"
    places |= {"stdout afterwards": gateway.stdout, "stderr afterwards": gateway.stderr}
    found = {
        f"{name} has {what}"
        for name, content in (*places.items(), *alive.items(), *_files(gateway.data_dir).items())
        for what, secret in {"a key": team.key, "the upstream's key": simulator.key, "a made-up key": made_up}.items()
        if secret.encode() in (content.encode() if isinstance(content, str) else content)
    }
    assert not found
    # A model's name is the one word of a body that is logged, for what it was: the name of a model.
    lines = [line for line in gateway.log_lines() if line["model"] != SPOKEN]
    assert lines
    assert SPOKEN not in json.dumps(lines)
    assert not [name for name, content in alive.items() if SPOKEN.encode() in content]
    assert SPOKEN not in places["stderr"] + places["metrics"]


def test_what_is_kept_is_nobody_elses(gateway):
    assert gateway.data_dir.stat().st_mode & 0o777 == 0o700


def _files(directory):
    found = {}
    for place, _, names in os.walk(directory):
        for path in (Path(place, name) for name in names):
            with suppress(FileNotFoundError):  # what goes meanwhile
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/admin/v1/teams", "/nothing"])
def test_a_page_that_goes_by_another_name_reads_nothing(gateway, session, path):
    """What a browser sends after a name was bound to this address anew."""
    answer = session.get(f"{gateway.operations_url}{path}", headers={"Host": "evil.example:8081"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host")
    assert "tollgate_" not in answer.text
    port = gateway.operations_url.rpartition(":")[2]
    for name in ("localhost", "tollgate", "10.1.2.3", "[::1]"):
        assert session.get(
            f"{gateway.operations_url}{path}", headers={"Host": f"{name}:{port}"}, timeout=10
        ).status_code == {"/admin/v1/teams": 401, "/nothing": 404}.get(path, 200)
