"""Text that looks like an answer and follows from its seed alone."""

from __future__ import annotations

import hashlib

__all__ = ["digest_of", "fraction_of", "split", "words"]

_TEXT = """
the a of and to in is that for as with on by at from it this an are was be or which one two each more most some time
way part place case point line word form side name number water light sound stone river field house road tree paper
letter question answer system order measure value small large early late clear open
"""
_WORDS = tuple(f" {word}" for word in _TEXT.split())
PIECE_CHARACTERS = 4


def digest_of(*parts: object) -> bytes:
    """Thirty-two bytes that stand for `parts`: numbers, strings and lists of them."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=32).digest()


def fraction_of(*parts: object) -> float:
    """A number in [0, 1) that follows from `parts`."""
    return int.from_bytes(digest_of(*parts)[:6], "big") / 2**48


def words(digest: bytes, count: int) -> list[str]:
    """`count` pieces of text, one word each, the blank before the word belonging to it."""
    numbers = hashlib.shake_256(digest).digest(count)
    chosen = [_WORDS[number % len(_WORDS)] for number in numbers]
    if chosen:
        chosen[0] = chosen[0][1:].capitalize()
    return chosen


def split(text: str) -> list[str]:
    """`text` in pieces of four characters, the last one shorter."""
    return [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)]
