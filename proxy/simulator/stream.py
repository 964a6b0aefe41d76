"""Sending a streamed answer, chunk by chunk, in its own time and with the faults asked for."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from proxy.simulator.clock import Time
from proxy.simulator.connection import cut, cut_inside, wait_for_leave
from proxy.simulator.endpoint import Answer, Frame, Stamp
from proxy.simulator.faults import Faults
from proxy.simulator.stats import Record
from proxy.simulator.writing import PackingWriter, Writer

__all__ = ["Pace", "send_stream"]

_NOT_JSON = Frame(b'data: {"id":"chatcmpl-\n\n')


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a stream goes, in milliseconds."""

    ttft_ms: float
    chunk_ms: float


async def send_stream(
    request: web.BaseRequest,
    response: web.StreamResponse,
    answer: Answer,
    stamp: Stamp,
    pace: Pace,
    faults: Faults,
    record: Record,
    time: Time,
) -> None:
    """Send an answer in frames; `record` counts what was sent. Raises `ConnectionResetError` when the client left.

    The pause between chunks stands before every piece of text but the first; the finish reason, the usage and the
    terminator follow their predecessor at once.
    """
    if faults.gzip:
        response.headers["Content-Encoding"] = "gzip"
    await response.prepare(request)
    if faults.hang_after_head:
        await wait_for_leave(request, time)
        raise ConnectionResetError
    await time.sleep(pace.ttft_ms / 1_000)
    writer = (PackingWriter if faults.gzip else Writer)(response, faults, time)
    for frame in answer.frames(stamp, usage=not faults.no_usage):
        if await _broken_off(request, writer, answer, faults, record.chunks_sent):
            return
        if faults.cut_inside_after == record.chunks_sent:
            await writer.flush()
            cut_inside(request, frame.data)
            return
        if frame.tokens and record.output_tokens_sent:
            await time.sleep(pace.chunk_ms / 1_000)
        sent = _NOT_JSON if faults.malformed and record.chunks_sent == 1 else frame
        await writer.write(sent.data)
        record.chunks_sent += 1
        record.output_tokens_sent += sent.tokens
    if await _broken_off(request, writer, answer, faults, None):
        return
    # A client may hang up on the terminator, so the answer counts as complete before it is written.
    record.completed = True
    if not faults.no_done:
        await writer.write(answer.terminator)
    await writer.flush()


async def _broken_off(
    request: web.BaseRequest, writer: Writer, answer: Answer, faults: Faults, chunks_sent: int | None
) -> bool:
    """Whether a fault ended the stream here; `chunks_sent` None: there are no more chunks, so any that waits is due."""
    if faults.error_event_after is not None and chunks_sent in {None, faults.error_event_after}:
        await writer.write(answer.error_event)
        await writer.flush()
        return True
    if faults.cut_after is not None and chunks_sent in {None, faults.cut_after}:
        await writer.flush()
        cut(request)
        return True
    return False
