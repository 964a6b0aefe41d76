"""Figures changed by one thread: what is counted adds up, here and in files, whatever becomes of the process."""

import math
import random
import signal
import subprocess
import sys
from collections import Counter as Sums
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from proxy.adapters.prometheus import Metrics
from proxy.adapters.prometheus_shared import render_shared
from proxy.adapters.prometheus_values import Times, keep_figures_here
from proxy.core.event import Outcome
from proxy.core.record import CacheResult, RequestRecord
from proxy.core.usage import Usage

ROOT = Path(__file__).parents[3]
BOUNDS = (0.005, 0.1, 1.0, 600.0)
PICO = 1_000_000_000_000


def series(text: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(text.decode())
    found = {f"{each.name} {sorted(each.labels.items())}": each.value for family in families for each in family.samples}
    assert found
    return found


@given(st.lists(st.floats(0, 1e9) | st.sampled_from([*BOUNDS, 0.0, math.nextafter(0.1, 1)]), min_size=1))
def test_a_time_is_counted_in_the_bucket_the_client_library_counts_it_in(times):
    keep_figures_here()
    registry = CollectorRegistry()
    ours = Histogram("ours_seconds", "Ours.", ("a",), buckets=BOUNDS, registry=registry).labels("x")
    theirs = Histogram("theirs_seconds", "Theirs.", ("a",), buckets=BOUNDS, registry=registry).labels("x")
    quick = Times(ours)
    for seconds in times:
        quick.observe(seconds)
        theirs.observe(seconds)
    for suffix in ("_count", "_sum"):
        told = [registry.get_sample_value(f"{name}_seconds{suffix}", {"a": "x"}) for name in ("ours", "theirs")]
        assert told[0] == told[1]
    for le in ("0.005", "0.1", "1.0", "600.0", "+Inf"):
        of = {"a": "x", "le": le}
        assert registry.get_sample_value("ours_seconds_bucket", of) == registry.get_sample_value(
            "theirs_seconds_bucket", of
        )


def some_records(seed: int, many: int, turn: int = 0) -> list[RequestRecord]:
    """Records of every kind, of so many teams that files have to grow."""
    chance = random.Random(seed)
    outcomes = [each for each in Outcome if each is not Outcome.INTERRUPTED]
    made = []
    for number in range(many):
        sent = chance.random() < 0.6
        made.append(
            RequestRecord(
                request_id=f"req_{number}",
                at_ms=1_800_000_000_000 + turn * 1_000_000 + number,
                method="POST",
                endpoint=chance.choice(["chat", "embeddings", "page"]),
                status=200,
                outcome=chance.choice(outcomes),
                duration_ms=chance.choice([4.0, 5.0, 120.0, 700_000.0]),
                overhead_ms=chance.choice([0.25, 2.0]),
                upstream_ms=chance.choice([0.0, 118.0]),
                ttft_ms=chance.choice([None, 3.0, 10.0]),
                team=f"team-{number % 40}",
                model=chance.choice(["gpt-4o", "gpt-4o-mini", "made-up", ""]),
                upstream=chance.choice(["openai", "azure"]) if sent else "",
                cache=chance.choice([None, *CacheResult]),
                cache_reason=chance.choice(["", "uri-miss"]),
                attempts=int(sent),
                usage=Usage(*(chance.choice([0, 1, 64]) for _ in range(5))),
                cost_pico_usd=chance.choice([0, PICO // 8]),
                saved_pico_usd=chance.choice([0, PICO // 4]),
                estimated=chance.random() < 0.1,
                unpriced=chance.random() < 0.1,
                limited_dimension=chance.choice(["", "", "requests", "budget"]),
                shadow_limited=chance.choice(["", "", "tokens"]),
                token_use_ratio=chance.choice([None, number / many]),
                request_use_ratio=chance.choice([None, 0.5]),
            )
        )
    return made


def counted(records: list[RequestRecord], metrics: Metrics) -> Metrics:
    for record in records:
        metrics.started()
        metrics.finished(record)
    return metrics


def known_models(model: str) -> bool:
    return model in {"gpt-4o", "gpt-4o-mini"}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_counted_adds_up(seed):
    records = some_records(seed, 120)
    metrics = counted(records, Metrics(known_models))
    expected: Sums[str] = Sums()

    def expect(name: str, amount: float, **labels: str) -> None:
        expected[f"{name} {sorted(labels.items())}"] += amount

    for each in records:
        if each.endpoint == "page":
            continue
        model = each.model if known_models(each.model) or not each.model else "_other"
        of_model = {"team": each.team, "model": model}
        expect("tollgate_requests_total", 1, **of_model, endpoint=each.endpoint, outcome=each.outcome.value)
        cache = (each.cache or CacheResult.BYPASS).value
        expect("tollgate_request_duration_seconds_count", 1, endpoint=each.endpoint, cache=cache)
        expect("tollgate_request_duration_seconds_sum", each.duration_ms / 1_000, endpoint=each.endpoint, cache=cache)
        if each.cache is not None:
            expect("tollgate_cache_requests_total", 1, team=each.team, result=cache, reason=each.cache_reason)
        if each.limited_dimension:
            expect("tollgate_rate_limited_total", 1, team=each.team, limit=each.limited_dimension)
        if each.shadow_limited:
            expect("tollgate_shadow_limited_total", 1, team=each.team, limit=each.shadow_limited)
        if each.unpriced:
            expect("tollgate_unpriced_requests_total", 1, model=model)
        if each.ttft_ms is not None:
            expect("tollgate_time_to_first_token_seconds_count", 1, model=model)
        if each.attempts:
            expect("tollgate_upstream_duration_seconds_count", 1, upstream=each.upstream)
            expect("tollgate_upstream_duration_seconds_sum", each.upstream_ms / 1_000, upstream=each.upstream)
            expect("tollgate_overhead_seconds_count", 1)
            tokens = (each.usage.input_tokens, each.usage.output_tokens)
            tokens += (each.usage.cached_input_tokens, each.usage.reasoning_tokens)
            for kind, amount in zip(("input", "output", "cached_input", "reasoning"), tokens, strict=True):
                expect("tollgate_tokens_total", amount, **of_model, kind=kind)
            expect("tollgate_spend_usd_total", each.cost_pico_usd / PICO, **of_model)
            if each.estimated:
                expect("tollgate_estimated_usage_total", 1, reason=each.outcome.value)
        elif each.outcome is Outcome.CACHED:
            expect("tollgate_saved_usd_total", each.saved_pico_usd / PICO, **of_model)
            expect("tollgate_saved_tokens_total", each.usage.total_tokens, **of_model)
    told = series(metrics.render()[0])
    summed = {name.partition(" ")[0] for name in expected}
    assert {name: value for name, value in told.items() if name.partition(" ")[0] in summed and value} == {
        name: value for name, value in expected.items() if value
    }


COUNTING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from proxy.adapters.prometheus_shared import share_between_processes
share_between_processes(Path(sys.argv[1]), int(sys.argv[2]))
import test_prometheus_values as here
from proxy.adapters.prometheus import Metrics
here.counted(here.some_records(int(sys.argv[2]), 300, int(sys.argv[4])), Metrics(here.known_models))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_counted_is_in_its_files_and_its_successor_goes_on_from_there(tmp_path):
    def die(number: int, turn: int) -> None:
        command = [sys.executable, "-c", COUNTING, str(tmp_path), str(number), str(Path(__file__).parent), str(turn)]
        ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    def here(*numbers: int) -> dict[str, float]:
        metrics = Metrics(known_models)
        for turn, number in enumerate(numbers):
            counted(some_records(number, 300, turn), metrics)
        return {name: value for name, value in series(metrics.render()[0]).items() if not name.startswith(ONES_OWN)}

    die(1, 0)
    assert shared(tmp_path) == pytest.approx(here(1))
    assert (tmp_path / "counter_1.db").stat().st_size > 65_536, "the file has grown meanwhile"
    die(2, 1)
    die(1, 2)
    assert shared(tmp_path) == pytest.approx(here(1, 2, 1))


ONES_OWN = ("tollgate_build_info", "tollgate_price_table")


def shared(directory: Path) -> dict[str, float]:
    told = series(render_shared(directory)[0])
    return {name: value for name, value in told.items() if not name.startswith(ONES_OWN)}
