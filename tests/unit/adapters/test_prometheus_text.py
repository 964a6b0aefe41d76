"""Two forms of the same figures, of one process and of several."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from proxy.adapters.prometheus import Metrics
from proxy.adapters.prometheus_shared import render_shared
from proxy.adapters.prometheus_text import written
from proxy.core.event import Outcome
from proxy.core.record import CacheResult, RequestRecord
from proxy.core.usage import Usage

ROOT = Path(__file__).parents[3]
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
RECORD = RequestRecord(
    request_id="req_0190b6c4d7e87aaf8c1f6c0d5b7a9e10",
    at_ms=1_800_000_000_000,
    method="POST",
    endpoint="chat",
    status=200,
    outcome=Outcome.OK,
    duration_ms=120.0,
    overhead_ms=2.0,
    upstream_ms=118.0,
    ttft_ms=40.0,
    team="growth",
    model="gpt-4o",
    upstream="openai",
    cache=CacheResult.MISS,
    attempts=1,
    usage=Usage(100, 20),
    cost_pico_usd=450_000_000,
)


@pytest.fixture
def metrics():
    metrics = Metrics({"gpt-4o"}.__contains__)
    for outcome in (Outcome.OK, Outcome.LIMITED, Outcome.UPSTREAM_ERROR):
        metrics.started()
        metrics.finished(replace(RECORD, outcome=outcome))
    return metrics


def exemplars(text):
    samples = [each for family in read_open_metrics(text.decode()) for each in family.samples if each.exemplar]
    return {(each.name, each.labels.get("outcome", "")): each.exemplar.labels for each in samples}


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=0.0.4", "text/html", "application/json", "\x00;;q="])
def test_whoever_does_not_name_open_metrics_is_told_in_plain_text(metrics, accept):
    text, content_type = metrics.render(accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"request_id" not in text
    assert {family.name for family in read_text(text.decode())} > {"tollgate_requests", "tollgate_spend_usd"}


@pytest.mark.parametrize(
    "accept", [PROMETHEUS, "Application/OpenMetrics-Text", "application/openmetrics-text;version=x;escaping=y"]
)
def test_whoever_names_open_metrics_is_told_which_request_it_was(metrics, accept):
    text, content_type = metrics.render(accept)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert text.endswith(b"# EOF\n")
    this = {"request_id": RECORD.request_id}
    assert exemplars(text) == {
        ("tollgate_request_duration_seconds_bucket", ""): this,
        ("tollgate_time_to_first_token_seconds_bucket", ""): this,
        ("tollgate_requests_total", "upstream_error"): this,
    }


def test_both_forms_say_the_same(metrics):
    def figures(families):
        return {
            (each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples
        }

    plain, open_metrics = (metrics.render(accept)[0].decode() for accept in ("", PROMETHEUS))
    assert figures(read_text(plain)) == figures(read_open_metrics(open_metrics))
    assert "_created" not in plain + open_metrics


def test_processes_that_share_their_figures_tell_them_in_both_forms_without_exemplars(tmp_path):
    counting = (
        "import sys; from pathlib import Path\n"
        "from proxy.adapters.prometheus_shared import share_between_processes\n"
        "share_between_processes(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "import tests.unit.adapters.test_prometheus_text as here\n"
        "metrics = here.Metrics({'gpt-4o'}.__contains__)\n"
        "metrics.started(); metrics.finished(here.RECORD)\n"
    )
    for number in ("0", "1"):
        subprocess.run([sys.executable, "-c", counting, str(tmp_path), number], cwd=ROOT, check=True)
    text, content_type = render_shared(tmp_path, PROMETHEUS)
    assert content_type.startswith("application/openmetrics-text")
    assert exemplars(text) == {}
    families = {family.name: family for family in read_open_metrics(text.decode())}
    assert [each.value for each in families["tollgate_requests"].samples if each.labels["outcome"] == "ok"] == [2]
    plain = render_shared(tmp_path)[0].decode()
    assert {family.name for family in read_text(plain)} == set(families), json.dumps(sorted(families))


@pytest.mark.parametrize("accept", ["", PROMETHEUS])
def test_between_a_few_samples_others_get_their_turn(accept):
    registry = CollectorRegistry()
    counter = Counter("tollgate_many_total", "Many.", ("number",), registry=registry)
    for number in range(1_000):
        counter.labels(number)
    shown = []
    text, _ = written(registry, accept, pause=shown.append)
    assert text.count(b"tollgate_many_total{") == 1_000
    assert len(shown) == 40
    assert all(0 < seconds < 0.001 for seconds in shown)
