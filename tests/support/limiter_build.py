"""The limiter on a real Redis whose time stands still: its scripts, with the one line exchanged that reads the clock.

Everything else is the text that is released. Expiry is set as an absolute time of that clock, so on a clock that is far
ahead of the server's no bucket expires by itself. The clock counts a microsecond at every look, as epochs need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from proxy.adapters.redis.bucket_state import script_text
from proxy.adapters.redis.limiter_scripts import LimiterScripts
from proxy.adapters.redis.scripts import Script
from proxy.core import bucket
from proxy.core.bucket import State
from proxy.core.tiers import Schedule

__all__ = [
    "FAR_AHEAD_MS",
    "VERBS",
    "clock_command",
    "full_at",
    "log_decisions",
    "on_hand_clock",
    "scripts_with",
]

VERBS = tuple(verb.name for verb in fields(LimiterScripts))
FAR_AHEAD_MS = 4_000_000_000_000
"""In 2096: no server expires a bucket of a clock that starts there."""

_READS_TIME = "local time = redis.call('TIME')"
_READS_HAND = "local time = { redis.call('HGET', 'hand', 'seconds'), redis.call('HINCRBY', 'hand', 'micros', 1) }"


def clock_command(now_ms: int) -> tuple[str | int, ...]:
    """The command that sets the clock; to be sent in order with those that are to see it."""
    return ("HSET", "hand", "seconds", now_ms // 1_000, "micros", now_ms % 1_000 * 1_000)


def full_at(state: State, schedule: Schedule) -> int:
    """The millisecond by which a bucket is full, when it expires: the one that each dimension is told, or the next."""
    epoch, at_ms, used_r, removed_r, used_t, removed_t = state
    latest_ms = at_ms
    for place, lone in (
        (0, (epoch, at_ms, used_r, removed_r, 0, removed_t)),
        (3, (epoch, at_ms, 0, removed_r, used_t, removed_t)),
    ):
        limit, _, reset_ms = bucket.peek(lone, schedule, at_ms)[place : place + 3]
        if limit:
            told_ms = at_ms + reset_ms
            latest_ms = max(latest_ms, told_ms + (not bucket.is_full(lone, schedule, told_ms)))
    return latest_ms


def on_hand_clock(verb: str, text: str) -> str:
    """The same script on the clock that `clock_command` sets."""
    assert text.count(_READS_TIME) == 1, verb
    return text.replace(_READS_TIME, _READS_HAND)


def log_decisions(verb: str, text: str) -> str:
    """The same script, which also appends to the list `log` its verb, epoch, keys, arguments and answer, as one run."""
    head, parted, body = text.partition("\n-- ARGV")
    assert parted, verb
    return f"""{head}
local function decide()
{parted}{body}
end
local answer = decide()
local numbers = {{}}
for place, number in ipairs(type(answer) == 'table' and answer or {{ answer }}) do
  numbers[place] = format('%.0f', number)
end
redis.call(
  'RPUSH', 'log', '{verb}', format('%.0f', new_epoch), #KEYS, #ARGV, table.concat(numbers, ' '), unpack(KEYS))
redis.call('RPUSH', 'log', unpack(ARGV))
return answer
"""


def scripts_with(*changes: Callable[[str, str], str]) -> LimiterScripts:
    """The limiter's scripts after some changes."""
    scripts = []
    for verb in VERBS:
        text = script_text(verb)
        for change in changes:
            text = change(verb, text)
        scripts.append(Script(verb, text))
    return LimiterScripts(*scripts)
