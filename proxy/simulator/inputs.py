"""Text as embeddings and completions take it: a string, several, token ids, or several lists of those.

Counting rule: one token for every four characters of a text or part of them; token ids as they are.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from proxy.simulator.refusal import Refusal
from proxy.simulator.words import PIECE_CHARACTERS

__all__ = ["Inputs", "each_of", "tokens_of"]

TokenId = Annotated[int, msgspec.Meta(ge=0)]
Inputs = str | list[str | TokenId | list[TokenId]]


def each_of(inputs: Inputs, param: str) -> list[str | list[int]]:
    """The inputs one by one. Raises `Refusal` for empty ones and for several kinds in one list."""
    if isinstance(inputs, str):
        several: list[str | list[int]] = [inputs]
    else:
        ids = [each for each in inputs if isinstance(each, int)]
        several = [ids] if ids else [each for each in inputs if not isinstance(each, int)]
        if (ids and len(ids) != len(inputs)) or len({type(each) for each in several}) > 1:
            raise Refusal(400, f"'{param}' has several kinds of input in one list.", param=param)
    if not several or not all(several):
        raise Refusal(400, f"'{param}' cannot be empty.", param=param)
    return several


def tokens_of(each: str | list[int]) -> int:
    """Tokens of one input by the rule above."""
    return -(-len(each) // PIECE_CHARACTERS) if isinstance(each, str) else len(each)
