"""The guard against slow change: what it says of counts, and that it counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import count
from tests.support.tools import program

ROOT = Path(__file__).parents[2]
HERE = {"python": "CPython 3.11.7", "architecture": "x86_64"}
RECORDED = {"environment": HERE, "instructions": {"digest": 55_000, "estimate": 16_000}}


@pytest.mark.parametrize(
    ("digest", "status", "said"),
    [
        (55_000, 0, "+0.0%"),
        (57_200, 0, "+4.0%"),
        (52_800, 0, "-4.0%"),
        (58_300, 1, "+6.0% MORE"),
        (51_700, 1, "-6.0% LESS"),
    ],
)
def test_a_step_is_held_to_five_percent(digest, status, said, capsys):
    assert count.judge(RECORDED, {"digest": digest, "estimate": 16_000}, HERE) == status
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if line.startswith("digest")).endswith(f"  {said}")
    assert ("not within 5%: digest\n" in shown) == (status == 1)


def test_a_step_that_is_gone_fails(capsys):
    assert count.judge(RECORDED, {"digest": 55_000}, HERE) == 1
    assert "not within 5%: estimate\n" in capsys.readouterr().out


def test_a_step_that_nobody_recorded_fails(capsys):
    assert count.judge(RECORDED, {"digest": 55_000, "estimate": 16_000, "log line": 60_000}, HERE) == 1
    assert "not within 5%: log line\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", [HERE | {"architecture": "aarch64"}, {"python": "CPython 3.11.7"}, HERE | {"msgspec": "1"}]
)
def test_counts_of_other_parts_are_shown_and_not_compared(other, capsys):
    assert count.judge(RECORDED, {"digest": 1_000_000, "estimate": 16_000}, other) == count.NOT_COMPARABLE
    shown = capsys.readouterr().out
    assert "1,000,000" in shown
    assert "not comparable" in shown
    assert "%" not in shown


def test_what_is_recorded_holds(tmp_path, capsys):
    file = tmp_path / "counts.json"
    counted = {"digest": 55_012.4, "estimate": 16_000.0}
    assert count.record(counted, HERE, file) == 0
    assert count.judge(json.loads(file.read_text()), counted, HERE) == 0
    assert "55,012" in capsys.readouterr().out


def test_what_differs_is_named():
    assert count.differences(HERE, HERE) == []
    assert count.differences(HERE, HERE | {"architecture": "aarch64"}) == ["architecture: x86_64, here aarch64"]


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**9)), max_size=5),
    st.integers(1, 100),
)
def test_what_is_not_the_steps_own_cancels(parts, times):
    """Before each pair of parts, between its two, and around every run there is something that is no step's."""
    names = [f"step {number}" for number in range(len(parts))]
    totals = []
    for beside, own, around in parts:
        totals += [beside, around + own * times, beside, around + 2 * own * times]
    shared = count.shared_out(names, [*totals, 12_345], times)
    assert shared == {name: own for name, (_, own, _) in zip(names, parts, strict=True)}


def test_parts_that_are_missing_are_seen():
    with pytest.raises(ValueError, match="4 parts of 1 steps"):
        count.shared_out(["digest"], [1, 2, 3, 4], 10)


def test_without_valgrind_it_says_what_to_install(tmp_path):
    command = [sys.executable, ROOT / "bench" / "count.py"]
    asked = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "apt-get install valgrind" in asked.stderr


SCRIPT = """
import sys
sys.path.insert(0, {bench!r})
from parts import run

def turns(count):
    def step():
        for _ in range(count):
            pass
    return step

run({{"as it was": turns(1000), "3 % more": turns(1030), "10 % more": turns(1100)}})
"""


def test_instructions_are_counted(tmp_path, capsys):
    program("valgrind", "valgrind")
    script = tmp_path / "turns.py"
    script.write_text(SCRIPT.format(bench=str(ROOT / "bench")))
    counted = count.count(script, times=10)
    # Some for each turn, and not what stands around the steps: a hundred million, or thousands a turn.
    assert 1_000 < counted["as it was"] < 1_000_000
    recorded = {"environment": HERE, "instructions": dict.fromkeys(counted, counted["as it was"])}
    assert count.judge(recorded, counted, HERE) == 1
    assert "not within 5%: 10 % more\n" in capsys.readouterr().out


def test_each_step_runs_and_is_recorded():
    command = [sys.executable, ROOT / "bench" / "counted.py", "--times", "1"]
    names = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(names) == list(json.loads(count.RECORDED.read_text())["instructions"])


def test_counts_of_a_script_that_fails_are_none(tmp_path):
    program("valgrind", "valgrind")
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no such step')")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        count.count(script)
    assert "no such step" in raised.value.stderr
