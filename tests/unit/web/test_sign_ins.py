"""Keys that open nothing are tried a few times a minute from one place, and no more."""

from __future__ import annotations

import pytest

from proxy.web.pages.sign_ins import MAX_FAILURES, WINDOW_MS, FailedSignIns


class Clock:
    def __init__(self):
        self.ms = 5_000

    def monotonic_ns(self):
        return self.ms * 1_000_000

    def now_ms(self):
        return self.ms


def test_the_eleventh_waits_until_the_minute_is_over():
    clock = Clock()
    failures = FailedSignIns(clock)
    for _ in range(MAX_FAILURES):
        assert failures.wait_ms("192.0.2.1") == 0
        failures.tried("192.0.2.1")
    assert failures.wait_ms("192.0.2.1") == WINDOW_MS
    assert failures.wait_ms("192.0.2.2") == 0, "others do not"
    clock.ms += WINDOW_MS - 1
    assert failures.wait_ms("192.0.2.1") == 1
    clock.ms += 1
    assert failures.wait_ms("192.0.2.1") == 0
    for _ in range(MAX_FAILURES):
        assert failures.wait_ms("192.0.2.1") == 0, "a new minute begins"
        failures.tried("192.0.2.1")
    assert failures.wait_ms("192.0.2.1") == WINDOW_MS


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        (None, "no address", True),
    ],
)
def test_who_holds_a_network_is_one(one, other, same):
    failures = FailedSignIns(Clock())
    for _ in range(MAX_FAILURES):
        failures.tried(one)
    assert (failures.wait_ms(other) > 0) == same


def test_what_opened_something_is_taken_back():
    clock = Clock()
    failures = FailedSignIns(clock)
    failures.tried("192.0.2.1")
    failures.opened("192.0.2.1")
    assert failures._failures == {}
    for _ in range(MAX_FAILURES):
        failures.tried("192.0.2.1")
    assert failures.wait_ms("192.0.2.1") > 0
    failures.opened("192.0.2.1")
    assert failures.wait_ms("192.0.2.1") == 0
    failures.tried("192.0.2.1")
    assert failures.wait_ms("192.0.2.1") == WINDOW_MS, "and no failure but that"
    failures.opened("192.0.2.2")
    assert list(failures._failures) == ["192.0.2.1"]


def test_room_is_bounded():
    failures = FailedSignIns(Clock())
    for number in range(10_050):
        failures.tried(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures._failures) == 10_000
