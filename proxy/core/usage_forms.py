"""Token counts as upstreams write them, whatever the endpoint.

Chat, legacy completions and embeddings count `prompt_tokens` and `completion_tokens`; responses, images and
transcriptions count `input_tokens` and `output_tokens`. Source: OpenAI's API specification (`CompletionUsage`,
`ResponseUsage`, the `usage` of `CreateEmbeddingResponse`, `ImagesResponse`, `TranscriptTextUsageTokens`).
"""

from __future__ import annotations

import msgspec

from proxy.core.usage import Usage

__all__ = ["UNREADABLE", "PlainAnswer", "WireUsage", "parse_plain"]

UNREADABLE = (msgspec.MsgspecError, RecursionError)
"""What decoding raises for what is no answer; the second for nesting by the thousand."""

_BEYOND_ANY_METER = 2**40


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """A `usage` object; a transcription that is paid by its seconds has no tokens in it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    input_token_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None

    def counted(self) -> Usage | None:
        """The counts, None where there are none or none that a meter could show."""
        read = self.input_tokens if self.prompt_tokens is None else self.prompt_tokens
        said = self.output_tokens if self.completion_tokens is None else self.completion_tokens
        if read is None and said is None:
            return None  # an object without a count is not a count of nothing
        inputs = self.prompt_tokens_details or self.input_tokens_details or self.input_token_details or _InputDetails()
        outputs = self.completion_tokens_details or self.output_tokens_details or _OutputDetails()
        counts = (
            read or 0,
            said or 0,
            inputs.cached_tokens or 0,
            inputs.cache_write_tokens or 0,
            outputs.reasoning_tokens or 0,
            inputs.audio_tokens or 0,
            outputs.audio_tokens or 0,
        )
        # Money is counted by these: what no meter can show is no usage at all.
        return Usage(*counts) if all(0 <= count < _BEYOND_ANY_METER for count in counts) else None


class PlainAnswer(msgspec.Struct):
    """What any plain answer may say of itself: an embedding, a moderation, a response, a transcription."""

    usage: WireUsage | None = None
    service_tier: str | None = None
    status: str | None = None
    """Of a response: `completed`, `incomplete`, `failed`..."""

    def counted(self) -> Usage | None:
        """The counts, None where there are none."""
        return self.usage.counted() if self.usage is not None else None


_decode = msgspec.json.Decoder(PlainAnswer).decode


def parse_plain(body: bytes) -> PlainAnswer:
    """Read a plain answer of any endpoint; one that cannot be read says nothing."""
    try:
        return _decode(body)
    except UNREADABLE:
        return PlainAnswer()
