import contextlib
import io
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.logs import RequestLog, console_line, json_line
from proxy.core.event import Outcome
from proxy.core.record import CacheResult, RequestRecord
from proxy.core.usage import Usage

RECORD = RequestRecord(
    request_id="req_1",
    at_ms=1_800_000_000_123,
    method="POST",
    endpoint="chat",
    status=200,
    outcome=Outcome.OK,
    duration_ms=120.0004,
    overhead_ms=2.0,
    upstream_ms=118.0004,
    team="growth",
    key_id="0123456789ab",
    model="gpt-4o",
    upstream="openai",
    cache=CacheResult.HIT,
    usage=Usage(100, 20),
    cost_pico_usd=2**60,
)

written = st.builds(
    lambda **changes: replace(RECORD, **changes),
    model=st.text(max_size=300),
    method=st.text(max_size=20),
    client_request_id=st.text(max_size=20),
    upstream_request_id=st.text(max_size=20),
    error_code=st.text(max_size=20),
    ttft_ms=st.none() | st.floats(0, 1e9),
    cost_pico_usd=st.integers(0, 2**62),
)


class Turns:
    """The turns of a loop, taken by hand."""

    def __init__(self) -> None:
        self.waiting = []

    def call_soon(self, callback) -> None:
        self.waiting.append(callback)

    def turn(self) -> None:
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


@given(st.lists(written, min_size=1, max_size=5))
def test_one_line_a_record_whatever_a_client_calls_its_model(records):
    turns, out = Turns(), io.StringIO(newline="")
    log = RequestLog(json_line, turns.call_soon, out)
    for record in records:
        log.write(record)
    turns.turn()
    assert out.getvalue().endswith("\n")
    lines = out.getvalue()[:-1].split("\n")
    assert len(lines) == len(records)
    for line, record in zip(lines, records, strict=True):
        read = json.loads(line)
        assert (read["model"] or "") == record.model
        assert read["cost_pico_usd"] == record.cost_pico_usd
        assert "\r" not in line
        assert "\x1b" not in line


@given(written)
def test_a_person_at_a_terminal_sees_one_line_and_no_control_characters(record):
    record = replace(record, error_code="", client_request_id="", upstream_request_id="", method="POST")
    assert console_line(record).isprintable()


def test_the_fields_of_a_line():
    read = json.loads(json_line(RECORD))
    assert read["at"] == "2027-01-15T08:00:00.123Z"
    assert (read["event"], read["team"], read["status"], read["outcome"]) == ("request", "growth", 200, "ok")
    assert (read["cache"], read["duration_ms"], read["ttft_ms"]) == ("hit", 120.0, None)
    assert (read["input_tokens"], read["output_tokens"], read["cost_pico_usd"]) == (100, 20, 2**60)


def test_a_line_has_no_room_for_secrets():
    held = {"key", "authorization", "headers", "body", "messages", "api_key", "secret", "user", "query", "path"}
    assert not held & set(json.loads(json_line(RECORD)))


def test_the_lines_of_one_turn_go_out_in_one_write():
    class Counted(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            return super().write(text)

    turns, out = Turns(), Counted()
    log = RequestLog(json_line, turns.call_soon, out)
    for _ in range(10):
        log.write(RECORD)
    assert len(turns.waiting) == 1
    turns.turn()
    log.write(RECORD)
    turns.turn()
    assert (out.writes, out.getvalue().count("\n")) == (2, 11)
    log.flush()
    assert out.writes == 2, "nothing to write is no write"


def closed_file():
    out = io.StringIO()
    out.close()
    return out


def pipe_without_reader():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def full_pipe():
    """One that nobody reads and that does not wait."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 65_536)
    return os.fdopen(write, "w"), read


def hurt(out) -> None:
    turns = Turns()
    log = RequestLog(json_line, turns.call_soon, out)
    for _ in range(300):
        log.write(RECORD)
        turns.turn()
    assert log._lines == []


def test_an_output_that_is_closed_hurts_nobody():
    hurt(closed_file())


def test_a_reader_that_has_gone_hurts_nobody():
    out = pipe_without_reader()
    hurt(out)
    with pytest.raises(BrokenPipeError):
        out.close()


def test_a_pipe_that_is_full_hurts_nobody():
    out, read = full_pipe()
    hurt(out)
    os.close(read)
    with pytest.raises(BrokenPipeError):
        out.close()


def test_lines_come_again_once_the_output_does():
    class Sometimes(io.StringIO):
        broken = True

        def flush(self) -> None:
            if self.broken:
                raise OSError(28, "no space left")

    turns, out = Turns(), Sometimes()
    log = RequestLog(json_line, turns.call_soon, out)
    log.write(RECORD)
    turns.turn()
    out.broken = False
    out.truncate(0)
    out.seek(0)
    log.write(RECORD)
    turns.turn()
    assert json.loads(out.getvalue())["request_id"] == "req_1"
