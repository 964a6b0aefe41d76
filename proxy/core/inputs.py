"""Text as embeddings and completions take it: a string, several, token ids, or several lists of those."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from proxy.core.asked import Asked
from proxy.core.count import Said
from proxy.core.errors import InvalidRequest
from proxy.core.estimate import text_tokens
from proxy.core.fields import missing, wrong_type

__all__ = ["MAX_INPUTS", "check_inputs", "count_of", "estimate_of", "inputs_in", "said_in"]

MAX_INPUTS = 2_048
"""Texts in one request, as OpenAI bounds those of embeddings."""


def check_inputs(name: str, value: object, *, may_be_empty: bool = False) -> None:
    """Check that it is one of the four, and of one kind throughout. Raises `InvalidRequest`.

    `may_be_empty`: there may be none, and what there is may have no text.
    """
    if may_be_empty and value in (None, ""):
        return
    if value is None or value in ("", []):
        raise missing(name, f"You must provide '{name}', and it must not be empty.")
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise wrong_type(name, (str, list))
    if all(isinstance(text, str) for text in value) or all(isinstance(text, list) for text in value):
        if len(value) > MAX_INPUTS:
            raise InvalidRequest(
                f"Invalid '{name}': at most {MAX_INPUTS} are taken at once.", param=name, code="array_above_max_length"
            )
        if not (may_be_empty or all(value)):
            raise InvalidRequest(f"Invalid '{name}': one of them is empty.", param=name)
        # Of strings it looks at none again.
        _check_ids(name, chain.from_iterable(text for text in value if isinstance(text, list)))
        return
    _check_ids(name, value)


def inputs_in(value: object) -> tuple[list[str], int]:
    """The texts of checked inputs, and how many token ids there are in their place."""
    if isinstance(value, str):
        return [value], 0
    if not isinstance(value, list):
        return [], 0
    texts = [text for text in value if isinstance(text, str)]
    return texts, 0 if texts else sum(len(each) if isinstance(each, list) else 1 for each in value)


def count_of(value: object) -> int:
    """How many inputs there are: a list of token ids is one."""
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1


def estimate_of(value: object) -> int:
    """Tokens of checked inputs: token ids exactly, each text by its characters."""
    texts, ids = inputs_in(value)
    return ids + sum(text_tokens(len(text)) for text in texts)


def said_in(asked: Asked, name: str) -> Said:
    """What a tokenizer counts of them."""
    texts, ids = inputs_in(asked.body.get(name))
    return Said(tuple(texts), ids)


def _check_ids(name: str, ids: Iterable[object]) -> None:
    for each in ids:
        if not isinstance(each, int) or isinstance(each, bool) or each < 0:
            raise InvalidRequest(
                f"Invalid type for '{name}': expected a string, an array of strings, an array of token ids or an array "
                "of arrays of token ids.",
                param=name,
                code="invalid_type",
            )
