"""Token counts of one exchange, by kind."""

from __future__ import annotations

import msgspec

__all__ = ["NO_USAGE", "Usage"]


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one exchange, as OpenAI's `usage` object counts them.

    `input_tokens` is the whole prompt: cached, cache-write and audio tokens are parts of it, not additions.
    `output_tokens` is the whole completion: reasoning and audio tokens are parts of it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together: what the token limit is charged with."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()
