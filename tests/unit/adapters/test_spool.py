import errno
import fcntl
import os
import resource
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.spool import (
    MAGIC,
    MAX_RECORD_BYTES,
    Segment,
    SpoolWriter,
    Stop,
    locked,
    read_slice,
    remove,
    segments_in,
)
from proxy.core.errors import Overloaded
from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.usage import Usage


def dispatch(number, **fields):
    values = {
        "event_id": f"event-{number}",
        "at_ms": 1_800_000_000_000 + number,
        "request_id": f"req_{number}",
        "team": "growth",
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "gpt-4o-mini",
        "upstream": "openai",
        "reserved_input_tokens": 10,
        "reserved_output_tokens": 20,
        "price_id": None,
    }
    return Dispatch(**values | fields)


def event(number, **fields):
    values = {
        "event_id": f"event-{number}",
        "at_ms": 1_800_000_000_000 + number,
        "request_id": f"req_{number}",
        "team": "growth",
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "gpt-4o-mini",
        "upstream": "openai",
        "status": 200,
        "outcome": Outcome.OK,
    }
    return UsageEvent(**values | fields)


def read_all(segment):
    begins, ends, offset, stop = [], [], 0, Stop.MORE
    while stop is Stop.MORE:
        part = read_slice(segment, offset)
        begins += part.begins
        ends += part.ends
        offset, stop = part.offset, part.stop
    return begins, ends, offset, stop


@pytest.fixture
def writer(tmp_path):
    writer = SpoolWriter(tmp_path / "spool", segment_bytes=4_096, quota_bytes=1 << 20)
    yield writer
    if writer._fd >= 0:
        writer.close()


def test_what_was_appended_is_read_in_order(writer):
    for number in range(3):
        writer.begin(dispatch(number))
        writer.end(event(number))
    [segment] = writer.segments()
    begins, ends, offset, stop = read_all(segment)
    assert begins == [dispatch(number) for number in range(3)]
    assert ends == [event(number) for number in range(3)]
    assert (offset, stop) == (segment.size_bytes, Stop.END)
    assert segment.size_bytes == segment.path.stat().st_size == writer.used_bytes


counts = st.integers(0, 2**63 - 1)
events = st.builds(
    UsageEvent,
    event_id=st.uuids().map(str),
    at_ms=counts,
    request_id=st.text(max_size=20),
    team=st.text(max_size=20),
    key_id=st.text(max_size=12),
    endpoint=st.text(max_size=20),
    model=st.text(max_size=200),
    upstream=st.text(max_size=20),
    status=st.integers(0, 599),
    outcome=st.sampled_from(Outcome),
    usage=st.builds(Usage, *[counts] * 7),
    cost_pico_usd=counts,
    saved_pico_usd=counts,
    price_id=st.none() | st.text(max_size=20),
    estimated=st.booleans(),
    attempts=st.integers(0, 9),
    duration_ms=counts,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(events, max_size=20))
def test_every_event_comes_back_as_it_was(tmp_path_factory, written):
    writer = SpoolWriter(tmp_path_factory.mktemp("spool"), segment_bytes=2_000)
    try:
        for each in written:
            writer.end(each)
        assert [each for segment in writer.segments() for each in read_all(segment)[1]] == written
    finally:
        writer.close()


def test_a_reader_follows_a_writer(writer):
    writer.begin(dispatch(1))
    first = read_slice(writer.segments()[0], 0)
    writer.end(event(1))
    second = read_slice(writer.segments()[0], first.offset)
    assert (first.begins, first.ends, first.stop) == ([dispatch(1)], [], Stop.END)
    assert (second.begins, second.ends, second.stop) == ([], [event(1)], Stop.END)


def test_a_segment_cut_at_any_byte_keeps_every_record_before_the_cut(writer):
    records = [dispatch(1), dispatch(2), event(1), event(2)]
    ends = [len(MAGIC)]
    for record, append in zip(records, (writer.begin, writer.begin, writer.end, writer.end), strict=True):
        append(record)
        ends.append(writer.segments()[0].size_bytes)
    [segment] = writer.segments()
    whole = segment.path.read_bytes()
    assert len(whole) == ends[-1]
    for size in range(len(whole)):
        segment.path.write_bytes(whole[:size])
        begins, events, offset, stop = read_all(segments_in(writer.directory)[0])
        kept = sum(end <= size for end in ends) - 1
        assert begins + events == records[: max(0, kept)], size
        assert offset == (ends[kept] if kept >= 0 else 0)
        assert stop is (Stop.END if size == offset > 0 else Stop.TORN), size


def test_a_changed_byte_in_the_last_record_is_a_torn_tail_or_damage_and_never_an_event(writer):
    writer.end(event(1))
    [before] = writer.segments()
    writer.end(event(2))
    [after] = writer.segments()
    whole = after.path.read_bytes()
    for at in range(before.size_bytes, after.size_bytes):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        after.path.write_bytes(changed)
        _, ends, offset, stop = read_all(after)
        assert (ends, offset) == ([event(1)], before.size_bytes)
        assert stop in {Stop.TORN, Stop.DAMAGED}


def test_a_changed_byte_in_the_middle_is_damage(writer):
    writer.end(event(1))
    [before] = writer.segments()
    writer.end(event(2))
    writer.end(event(3))
    [after] = writer.segments()
    whole = bytearray(after.path.read_bytes())
    whole[before.size_bytes + 20] ^= 0x55
    after.path.write_bytes(whole)
    assert read_all(after)[1:] == ([event(1)], before.size_bytes, Stop.DAMAGED)


def test_zeros_after_a_power_cut_are_a_torn_tail(writer):
    writer.end(event(1))
    [segment] = writer.segments()
    segment.path.write_bytes(segment.path.read_bytes() + bytes(4_096))
    [longer] = segments_in(writer.directory)
    assert read_all(longer)[1:] == ([event(1)], segment.size_bytes, Stop.TORN)


@pytest.mark.parametrize(
    ("content", "stop"), [(b"", Stop.TORN), (MAGIC[:3], Stop.TORN), (b"NOTMINE!" * 9, Stop.DAMAGED)]
)
def test_a_file_without_its_beginning_holds_nothing(tmp_path, content, stop):
    path = tmp_path / "00000001.spool"
    path.write_bytes(content)
    assert read_all(Segment(path, len(content), closed=True)) == ([], [], 0, stop)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_content_makes_the_reader_fail_or_hang(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("spool") / "00000001.spool"
    path.write_bytes(MAGIC + content)
    offset, stop = 0, Stop.MORE
    for _ in range(100):
        if stop is not Stop.MORE:
            break
        part = read_slice(Segment(path, len(MAGIC + content), closed=True), offset)
        offset, stop = part.offset, part.stop
    assert stop is not Stop.MORE


def test_a_segment_is_read_in_slices(tmp_path):
    writer = SpoolWriter(tmp_path)
    for number in range(6_000):
        writer.end(event(number))
    [segment] = writer.segments()
    first = read_slice(segment, 0)
    assert first.stop is Stop.MORE
    assert first.offset < segment.size_bytes
    assert read_all(segment)[1] == [event(number) for number in range(6_000)]
    writer.close()


def test_a_full_segment_is_closed_and_the_next_begun(writer):
    while len(writer.segments()) < 3:
        writer.end(event(1))
    first, second, last = writer.segments()
    assert (first.closed, second.closed, last.closed) == (True, True, False)
    assert first.size_bytes >= 4_096
    assert first.name == f"{writer.directory.name}/00000001"
    assert [segment.path for segment in segments_in(writer.directory)] == [first.path, second.path, last.path]
    used = writer.used_bytes
    writer.release(first)
    assert writer.segments() == [second, last]
    assert writer.used_bytes == used - first.size_bytes
    writer.sync()
    assert not writer._retired


def test_at_the_quota_nothing_begins_and_everything_ends(tmp_path):
    writer = SpoolWriter(tmp_path, segment_bytes=1_000, quota_bytes=3_000)
    begun = 0
    while begun < 100:
        try:
            writer.begin(dispatch(begun))
        except Overloaded:
            break
        begun += 1
    assert 1 < begun < 100
    assert writer.used_bytes <= 3_000
    for number in range(begun):
        writer.end(event(number))
    for segment in writer.segments()[:-1]:
        writer.release(segment)
    writer.begin(dispatch(begun))
    writer.foreign_bytes = 3_000
    with pytest.raises(Overloaded, match="quota"):
        writer.begin(dispatch(begun + 1))
    writer.close()


def test_a_record_has_a_largest_size(writer):
    with pytest.raises(Overloaded, match="too large"):
        writer.begin(dispatch(1, model="m" * MAX_RECORD_BYTES))
    with pytest.raises(ValueError, match="too large"):
        writer.end(event(1, model="m" * MAX_RECORD_BYTES))
    assert writer.used_bytes == len(MAGIC)


def test_half_a_record_on_a_full_disk_is_taken_back(writer):
    writer.end(event(1))
    [before] = writer.segments()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel writes up to the limit and then refuses, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (before.size_bytes + 50, hard))
    try:
        with pytest.raises(Overloaded, match="cannot be written"):
            writer.begin(dispatch(2))
        with pytest.raises(OSError) as raised:
            writer.end(event(2))
        assert raised.value.errno == errno.ENOSPC
        assert before.path.stat().st_size == before.size_bytes
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.end(event(3))
    assert read_all(writer.segments()[0])[1:] == ([event(1), event(3)], writer.used_bytes, Stop.END)


@pytest.mark.parametrize(("strict", "forced"), [(True, [1, 2]), (False, [0, 0])])
def test_strict_forces_each_record_to_disk_before_it_returns(tmp_path, monkeypatch, strict, forced):
    writer = SpoolWriter(tmp_path, strict=strict)
    syncs = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), sync(fd)))
    writer.begin(dispatch(1))
    begun = len(syncs)
    writer.end(event(1))
    assert [begun, len(syncs)] == forced
    writer.close()


def test_strict_writes_the_same(tmp_path):
    writer = SpoolWriter(tmp_path, strict=True)
    writer.begin(dispatch(1))
    writer.end(event(1))
    assert read_all(writer.segments()[0])[:2] == ([dispatch(1)], [event(1)])
    writer.close()


def test_a_living_writer_holds_its_lock(tmp_path):
    one, other = SpoolWriter(tmp_path), SpoolWriter(tmp_path)
    assert one.directory != other.directory
    with locked(one.directory) as dead:
        assert not dead
    one.close()
    with locked(one.directory) as dead:
        assert dead
        with locked(one.directory) as again:
            assert not again
    with locked(other.directory) as dead:
        assert not dead
    other.close()


def test_what_is_removed_cannot_be_locked(tmp_path):
    writer = SpoolWriter(tmp_path)
    writer.end(event(1))
    writer.close()
    with locked(writer.directory) as dead:
        assert dead
        remove(writer.directory)
    assert list(tmp_path.iterdir()) == []
    with locked(writer.directory) as dead:
        assert not dead


def test_a_directory_that_is_removed_while_its_lock_is_asked_for_is_gone(tmp_path, monkeypatch):
    writer = SpoolWriter(tmp_path)
    writer.close()
    flock = fcntl.flock

    def removed_meanwhile(fd, operation):
        remove(writer.directory)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with locked(writer.directory) as dead:
        assert not dead


def test_files_are_the_owners_alone(tmp_path):
    writer = SpoolWriter(tmp_path / "spool")
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert stat.S_IMODE(writer.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in writer.directory.iterdir()} == {0o600}
    assert not os.get_inheritable(writer._fd)
    writer.close()
