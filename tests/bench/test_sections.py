"""The sections of the benchmark run, say what they promise, and leave nothing behind; how fast all is, nobody asks."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import passing
import psutil
import pytest
import run
from figures import Figure, deliver, lines, read, write
from load import Seen, Waits
from processes import running
from rounds import interleaved, ratios

BENCH = Path(__file__).parents[2] / "bench"
WITHIN_SECONDS = 60


def test_the_pass_through_is_measured_from_both_sides():
    figures = passing.measure(rounds=1, seconds=0.1, per_second=50, client="own")
    seen = {figure.what: figure for figure in figures}
    assert len(seen) == len(figures)
    assert all(figure.value > 0 for figure in figures if figure.unit == "/s")
    targets = {what: (figure.target, figure.better) for what, figure in seen.items() if figure.target is not None}
    assert {"governed pass-through, embedded, of bare pass-through", "bare pass-through: busy"} < seen.keys()
    assert targets == {
        "governed pass-through, embedded, of bare pass-through": (0.6, "more"),
        "governed pass-through, Redis, of bare pass-through": (0.5, "more"),
        "governed pass-through, embedded: added p50 at 50/s, open loop": (0.5, "less"),
        "governed pass-through, embedded: added p99 at 50/s, open loop": (3.0, "less"),
        "governed pass-through, embedded, of bare pass-through, by CPU": (0.6, "more"),
        "governed pass-through, Redis, of bare pass-through, by CPU": (0.5, "more"),
    }


def test_latency_is_added_within_a_round_and_counts_only_where_it_is_quiet():
    bare = [Waits((1_000.0,), 10), Waits((1_500.0,), 20), Waits((1_200.0,), 30)]
    ours = [Waits((1_400.0,), 0), Waits((1_900.0,), 0), Waits((9_200.0,), 0)]
    told = passing.latencies({passing.BARE: bare, passing.EMBEDDED: ours, passing.ON_REDIS: bare}, 500)
    added = {figure.what: (round(figure.value, 6), figure.target) for figure in told if "added" in figure.what}
    assert added == {
        "governed pass-through, embedded: added p50 at 500/s, open loop": (0.4, 0.5),
        "governed pass-through, embedded: added p99 at 500/s, open loop": (0.4, 3.0),
        "governed pass-through, Redis: added p50 at 500/s, open loop": (0, None),
        "governed pass-through, Redis: added p99 at 500/s, open loop": (0, None),
    }
    assert [(figure.value, figure.spread) for figure in told if "generator" in figure.what] == [(0.01, (0, 0.03))]
    held_up = [Waits((11_000.0,), 0)]
    told = passing.latencies({passing.BARE: held_up, passing.EMBEDDED: held_up, passing.ON_REDIS: held_up}, 500)
    assert [figure.quiet for figure in told if figure.target is not None] == [False] * 2
    assert [figure.met for figure in told] == [None] * 7


def test_all_sections_become_one_table_and_one_file(tmp_path):
    command = [sys.executable, BENCH / "run.py", "--quick", "--only", "cache", "--json", tmp_path / "bench.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "All that has a target;" in done.stdout
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["failed"] == []
    assert {"cpu", "cores", "python", "libraries", "commit"} <= written["machine"].keys()
    assert [Figure(**each | {"spread": None}).unit for each in written["sections"]["cache"]] == ["us", "us", "KB"] * 3
    assert [each.what for each in read(tmp_path / "cache.json")] == [
        each["what"] for each in written["sections"]["cache"]
    ]


def test_a_section_that_fails_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.SECTIONS, "nothing", "A section without a script")
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "nothing", "--json", str(tmp_path / "bench.json")])
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    try:
        assert run.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert "failed: nothing" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["failed"] == ["nothing"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind_when_it_is_ended_early(signum, tmp_path):
    command = [sys.executable, BENCH / "run.py", "--only", "hits", "--json", tmp_path / "bench.json"]
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # What runs in the background of a shell is deaf to Ctrl-C, and so is all that it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - there is one thread
    )
    started = []
    try:
        until = time.monotonic() + WITHIN_SECONDS
        # Its section, nginx or our upstream, two servers of Redis, and a gateway.
        while len(started) < 5 and child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
            started = psutil.Process(child.pid).children(recursive=True)
        assert len(started) >= 5
        child.send_signal(signum)
        assert child.wait(timeout=WITHIN_SECONDS) != 0
        assert psutil.wait_procs(started, timeout=WITHIN_SECONDS)[1] == []
    finally:
        child.kill()
        child.wait()


def test_servers_are_started_without_the_settings_of_this_environment(tmp_path, monkeypatch):
    told = "[sys.dont_write_bytecode, 'TOLLGATE_PORT' in os.environ, os.getenv('OF')]"
    said = f"import json, os, sys; print(json.dumps({told}))"
    for name in ("PYTHONDONTWRITEBYTECODE", "TOLLGATE_PORT"):
        monkeypatch.setenv(name, "1")
    for of in ("one", "two"):
        with running(sys.executable, "-c", said, log=tmp_path / "log", OF=of) as child:
            assert child.wait(timeout=WITHIN_SECONDS) == 0
    assert list(map(json.loads, (tmp_path / "log").read_text().splitlines())) == [
        [False, False, "one"],
        [False, False, "two"],
    ]


def test_rounds_are_interleaved_and_ratios_taken_within_them():
    order = []
    seen = interleaved(["a", "b"], lambda name: order.append(name) or len(order), 3)
    assert order == ["a", "b"] * 3
    assert seen == {"a": [1, 3, 5], "b": [2, 4, 6]}


def drives(rates, cores):
    return [Seen(rate, cores * 1e6 / rate, 1, 1) for rate in rates]


def test_a_ratio_is_of_one_round_and_its_rate_counts_only_where_it_is_quiet():
    # The machine is half as fast in every round, and the ratio is the same.
    bare = drives((8_000, 4_000, 2_000), 1)
    rate, cpu = ratios({"bare": bare, "ours": drives((4_000, 2_000, 1_000), 0.9)}, "bare", {"ours": 0.6})
    assert (rate.value, rate.spread, rate.met) == (0.5, (0.5, 0.5), False)
    assert (cpu.value, cpu.target) == (pytest.approx(0.5 / 0.9), 0.6)
    for noisy in ({"bare": drives((8_000,), 0.8), "ours": bare[:1]}, {"bare": bare[:1], "ours": drives((8_000,), 0.8)}):
        rate, cpu = ratios(noisy, "bare", {"ours": 0.6})
        assert (rate.value, rate.target, rate.met, cpu.met) == (1, 0.6, None, True)


def test_a_figure_tells_its_target_and_whether_it_is_met(tmp_path, capsys):
    figures = [
        Figure("latency", 2.0, "ms", target=3.0),
        Figure("rate", 1234.5, "/s", target=2_000.0, better="more"),
        Figure.of("taken thrice", [3.0, 1.0, 2.0], "us"),
        Figure("in a crowd", 9.0, "ms", target=3.0, quiet=False),
    ]
    assert [figure.met for figure in figures] == [True, False, None, None]
    assert figures[2].value == 2.0
    assert [line.split() for line in lines(figures)] == [
        ["what", "seen", "spread", "target"],
        ["latency", "2", "ms", "<=", "3", "ms", "met"],
        ["rate", "1,234", "/s", ">=", "2,000", "/s", "short"],
        ["taken", "thrice", "2", "us", "1", "..", "3"],
        ["in", "a", "crowd", "9", "ms", "<=", "3", "ms", "noisy"],
    ]
    deliver(figures, tmp_path / "deep" / "figures.json")
    assert capsys.readouterr().out.count("\n") == 5
    assert read(tmp_path / "deep" / "figures.json") == figures
    write(tmp_path / "none.json", [])
    assert read(tmp_path / "none.json") == []
