import contextlib
import io
import json
import os
import select
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.adapters.logs import RequestLog, _at_once, console_line, json_line
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
    assert log.written(60)
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
    assert console_line(record).decode().isprintable()


def test_the_fields_of_a_line():
    read = json.loads(json_line(RECORD))
    assert read["at"] == "2027-01-15T08:00:00.123Z"
    assert (read["event"], read["team"], read["status"], read["outcome"]) == ("request", "growth", 200, "ok")
    assert (read["cache"], read["duration_ms"], read["ttft_ms"]) == ("hit", 120.0, None)
    assert (read["input_tokens"], read["output_tokens"], read["cost_pico_usd"]) == (100, 20, 2**60)


text = st.text(max_size=30)
spans_ms = st.floats(0, 1e9) | st.sampled_from([0.0, 0.0005, 0.0015, 0.1 + 0.2, 2.675, 1e-9, 1e16])
counts = st.integers(0, 2**40)
anything = st.builds(
    RequestRecord,
    request_id=text,
    at_ms=st.integers(0, 4_102_444_800_000),
    method=text,
    endpoint=text,
    status=st.integers(0, 599),
    outcome=st.sampled_from(Outcome),
    duration_ms=spans_ms,
    overhead_ms=spans_ms,
    upstream_ms=spans_ms,
    queued_ms=spans_ms,
    ttft_ms=st.none() | spans_ms,
    team=text,
    key_id=text,
    model=text,
    upstream=text,
    upstream_request_id=text,
    client_request_id=text,
    error_code=text,
    cache=st.none() | st.sampled_from(CacheResult),
    attempts=st.integers(0, 9),
    tried=st.lists(text, max_size=3).map(tuple),
    usage=st.builds(Usage, counts, counts, counts, counts, counts),
    cost_pico_usd=st.integers(0, 2**62),
    saved_pico_usd=st.integers(0, 2**62),
    estimated=st.booleans(),
    limited_scope=text,
    limited_dimension=text,
    shadow_limited=text,
)


@given(anything)
def test_every_field_is_in_its_place_byte_for_byte(record):
    at = datetime.fromtimestamp(record.at_ms / 1_000, UTC).isoformat(timespec="milliseconds")
    fields = {
        "at": at.replace("+00:00", "Z"),
        "event": "request",
        "request_id": record.request_id,
        "client_request_id": record.client_request_id or None,
        "team": record.team or None,
        "key_id": record.key_id or None,
        "method": record.method,
        "endpoint": record.endpoint,
        "model": record.model or None,
        "status": record.status,
        "outcome": record.outcome,
        "error_code": record.error_code or None,
        "limited": record.limited_dimension or None,
        "limited_scope": record.limited_scope or None,
        "shadow_limited": record.shadow_limited or None,
        "cache": record.cache,
        "attempts": record.attempts,
        "tried": record.tried if len(record.tried) > 1 else None,
        "upstream": record.upstream or None,
        "upstream_request_id": record.upstream_request_id or None,
        "input_tokens": record.usage.input_tokens,
        "cached_input_tokens": record.usage.cached_input_tokens,
        "output_tokens": record.usage.output_tokens,
        "reasoning_tokens": record.usage.reasoning_tokens,
        "estimated": record.estimated,
        "cost_pico_usd": record.cost_pico_usd,
        "saved_pico_usd": record.saved_pico_usd,
        "ttft_ms": None if record.ttft_ms is None else round(record.ttft_ms, 3),
        "duration_ms": round(record.duration_ms, 3),
        "upstream_ms": round(record.upstream_ms, 3),
        "overhead_ms": round(record.overhead_ms, 3),
        "queued_ms": round(record.queued_ms, 3),
    }
    assert json_line(record) == msgspec.json.encode(fields)


@given(st.lists(st.integers(0, 4_102_444_800_000) | st.integers(1_799_999_999_000, 1_800_000_001_999), min_size=2))
def test_instants_are_told_to_the_millisecond_whatever_was_told_before(instants):
    for at_ms in instants:
        told = json.loads(json_line(replace(RECORD, at_ms=at_ms)))["at"]
        assert told == f"{datetime.fromtimestamp(at_ms // 1_000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1_000:03d}Z"


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
    assert log.written(60)
    log.write(RECORD)
    turns.turn()
    assert log.written(60)
    assert (out.writes, out.getvalue().count("\n")) == (2, 11)
    assert log.written(60)
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


def hurt(out, patience_seconds) -> int:
    """Write to an output that takes nothing; says how many lines were counted as dropped."""
    turns, dropped = Turns(), []
    log = RequestLog(json_line, turns.call_soon, out, on_dropped=dropped.append)
    for _ in range(300):
        log.write(RECORD)
        turns.turn()
    log.close(patience_seconds)
    return sum(dropped)


def test_an_output_that_is_closed_hurts_nobody():
    assert hurt(closed_file(), 60) == 300


def test_a_reader_that_has_gone_hurts_nobody():
    out = pipe_without_reader()
    assert hurt(out, 60) == 300
    out.close()


def test_a_pipe_that_is_full_hurts_nobody():
    out, read = full_pipe()
    # All but those that were being written when the log was closed.
    assert hurt(out, 0.3) > 150
    os.close(read)
    out.close()


def test_a_pipe_that_does_not_wait_loses_nothing_while_somebody_reads():
    read, write = os.pipe()
    os.set_blocking(write, False)
    turns, got = Turns(), []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(read, 1_000), b"")))
    reader.start()
    with os.fdopen(write, "w") as out:
        log = RequestLog(json_line, turns.call_soon, out)
        for _ in range(2_000):
            log.write(RECORD)
            turns.turn()
        log.close(60)
    reader.join()
    os.close(read)
    assert b"".join(got).splitlines() == [json_line(RECORD)] * 2_000


def test_a_reader_that_stalls_holds_up_nobody_and_is_told_the_oldest_when_it_reads_again():
    read, write = os.pipe()
    turns, dropped = Turns(), []
    size = len(json_line(RECORD)) + 1
    held = 300
    with os.fdopen(write, "w") as out:
        log = RequestLog(json_line, turns.call_soon, out, on_dropped=dropped.append, held_bytes=held * size)
        # Twice as many as the pipe and the log hold together.
        sent = 2 * (held + 65_536 // size)
        for number in range(sent):
            log.write(replace(RECORD, request_id=f"{number:05}"))
            turns.turn()
        assert 0 < sum(dropped) < sent
        assert not log.written(0.05)
        assert log._handed_bytes - log._done_bytes <= held * size
        kept = sent - sum(dropped)
        got = b""
        while got.count(b"\n") < kept:
            got += os.read(read, 65_536)
        assert log.written(60)
        assert log._handed_bytes == log._done_bytes
        numbers = [int(json.loads(line)["request_id"]) for line in got.splitlines()]
        assert numbers == sorted(numbers)
        assert numbers[:held] == list(range(held))
        log.write(RECORD)
        turns.turn()
        assert json.loads(os.read(read, 65_536))["request_id"] == "req_1"
        assert len(numbers) + sum(dropped) == sent
        log.close(60)
    os.close(read)


@given(st.lists(st.binary(max_size=9_000).map(lambda text: text.replace(b"\n", b" ") + b"\n"), min_size=1))
def test_lines_of_several_workers_stay_apart_in_one_pipe(lines):
    pieces = list(_at_once(b"".join(lines)))
    assert b"".join(pieces) == b"".join(lines)
    for piece in pieces:
        assert piece.endswith(b"\n")
        assert len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1


def test_two_that_write_to_one_pipe_write_whole_lines():
    read, write = os.pipe()
    logs, turns, got = [], Turns(), []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(read, 10_000), b"")))
    reader.start()
    with os.fdopen(write, "w") as out:
        for name in (b"a", b"b"):
            log = RequestLog(lambda record, name=name: name * int(record.request_id), turns.call_soon, out)
            logs.append(log)
        for number in range(300):
            for log in logs:
                for size in (1, 1_000, 3_000):
                    log.write(replace(RECORD, request_id=str(size + number)))
            turns.turn()
        for log in logs:
            log.close(60)
    reader.join()
    os.close(read)
    found = b"".join(got).decode().splitlines()
    assert len(found) == 1_800
    assert {len(set(line)) for line in found} == {1}


def test_a_process_ends_while_nobody_reads_its_log():
    program = """
        import asyncio, sys
        from proxy.adapters.logs import RequestLog
        log = RequestLog(lambda record: b"x" * 1_000, lambda flush: flush(), on_dropped=lambda lines: None)
        for _ in range(500):
            log.write(None)
        log.close(0.1)
    """
    read, write = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    os.close(read)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_no_encoding_can_say_is_written_all_the_same():
    assert b" half \\ud83e of a pair " in console_line(replace(RECORD, method="GET", team="half \ud83e of a pair"))


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
    assert log.written(60)
    out.broken = False
    out.truncate(0)
    out.seek(0)
    log.write(RECORD)
    turns.turn()
    assert log.written(60)
    assert json.loads(out.getvalue())["request_id"] == "req_1"


def test_a_disk_that_was_full_for_a_while_costs_the_lines_it_had_no_room_for(tmp_path):
    script = textwrap.dedent("""
        import resource, signal, sys
        from proxy.adapters.logs import RequestLog
        dropped = []
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = RequestLog(str.encode, lambda flush: None, on_dropped=dropped.append)
        for most, lines in ((25, range(10, 15)), (25, range(20, 22)), (10_000, range(30, 33)), (10_000, [40])):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, 10_000))
            for each in lines:
                log.write(f"a line {each}")
            assert log.written(60)
        print(dropped, file=sys.stderr)
    """)
    path = tmp_path / "log"
    with path.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, timeout=60, check=True
        )
    assert path.read_text().splitlines() == [
        *("a line 10", "a line 11", "a lin"), *("a line 30", "a line 31", "a line 32", "a line 40")
    ]  # fmt: skip
    assert done.stderr.decode().strip() == "[3, 2]"
