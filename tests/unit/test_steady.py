"""What a full collection walks over has a bound, however much is kept."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import gc, json
from proxy.app.steady import _MOST_WALKED, keep_loop_steady

keep_loop_steady()
gc.disable()
kept, seen = [], []

def look():
    gc.collect()
    seen.append([gc.get_freeze_count(), len(gc.get_objects(generation=2))])

look()
kept.append([[] for _ in range(_MOST_WALKED // 2)])
look()
for _ in range(4):
    kept.append([[] for _ in range(_MOST_WALKED)])
    look()

class Node:
    pass

class Told:
    def __del__(self):
        seen.append("gone")

node = Node()
node.self, node.told = node, Told()
del node
gc.collect()
kept.clear()
seen.append(gc.get_freeze_count())
print(json.dumps([_MOST_WALKED, *seen]))
"""

WAVES = """
import gc
from proxy.app.steady import keep_loop_steady

class Request:
    pass

def wave():
    under_way = [Request() for _ in range(32)]
    for each in under_way:
        each.parts = [[] for _ in range(60)]

keep_loop_steady()
before = gc.get_stats()[0]["collections"]
for _ in range(50):
    wave()
print(gc.get_stats()[0]["collections"] - before)
"""

START = """
import gc
from proxy.app.steady import keep_loop_steady

gc.disable()
keep_loop_steady()
print(gc.isenabled(), gc.get_freeze_count() > 10_000)
"""


def test_a_collector_that_rested_during_the_start_goes_on_without_what_the_start_made():
    said = subprocess.run([sys.executable, "-c", START], check=True, capture_output=True, text=True, timeout=60).stdout
    assert said.split() == ["True", "True"]


def test_a_wave_of_requests_is_no_reason_to_collect():
    said = subprocess.run([sys.executable, "-c", WAVES], check=True, capture_output=True, text=True, timeout=60).stdout
    assert int(said) <= 2


def test_what_has_become_many_is_walked_over_once():
    said = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=60).stdout
    most, start, few, *many, gone, at_last = json.loads(said)
    assert start[0] == few[0] > 0, "what is few stays with the collector"
    assert few[1] >= most // 2
    for before, after in zip([few, *many], many, strict=False):
        assert after[0] >= before[0] + most
        assert after[1] < most // 10
    assert gone == "gone", "a cycle that comes later is found"
    assert at_last <= start[0] + most // 10, "what nothing refers to goes without a collection"
