"""Counts tokens with OpenAI's vocabularies, which come with the package `bpe-openai`."""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from proxy.core.count import Encoding, Said
from proxy.ports import Telemetry

__all__ = ["BpeTokenizer"]

_AT_ONCE_CHARACTERS = 50_000
"""Counted in under a millisecond."""
_AT_ONCE_TEXTS = 1_000
_PIECE_CHARACTERS = 40_000
_SEAM_CHARACTERS = 200
_WAITING_CHARACTERS = 64 << 20
_PACKAGE = "bpe_openai"

Count = Callable[[str], int]
Then = Callable[[tuple[int, ...] | None], None]

_log = logging.getLogger(__name__)


class BpeTokenizer:
    """Counts at once what is short, and in a thread of its own what is long; implements `ports.Tokenizer`.

    A vocabulary is loaded in that thread when something is first counted with it: 60 ms and 65 MB for the newest.
    Belongs to one event loop. `close_seconds`: how long `close` waits for what is being counted.
    """

    def __init__(self, telemetry: Telemetry, *, close_seconds: float = 2.0) -> None:
        self._telemetry = telemetry
        self._close_seconds = close_seconds
        self._loaded: dict[Encoding, Count] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._waiting: set[asyncio.Future[tuple[int, ...]]] = set()
        self._waiting_characters = 0
        self._closed = False

    def count(self, encoding: Encoding, said: Sequence[Said]) -> tuple[int, ...] | None:
        """Tokens of each, at once; None where that would take long."""
        count = self._loaded.get(encoding)
        long = sum(each.characters for each in said) > _AT_ONCE_CHARACTERS
        if count is None or long or sum(len(each.texts) for each in said) > _AT_ONCE_TEXTS:
            return None
        return tuple(_tokens(count, each) for each in said)

    def count_later(self, encoding: Encoding, said: Sequence[Said], then: Then) -> None:
        """Count in the thread, and call `then` on this one with the tokens of each, or with None."""
        characters = sum(each.characters for each in said)
        if self._closed or self._waiting_characters + characters > _WAITING_CHARACTERS:
            then(None)
            return
        counting = asyncio.get_running_loop().run_in_executor(self._thread, self._work, encoding, tuple(said))
        self._waiting.add(counting)
        self._waiting_characters += characters
        counting.add_done_callback(partial(self._done, characters, then))

    async def close(self) -> None:
        """Finish what waits, for a moment; what is not finished by then is not counted. Nothing is, after this."""
        self._closed = True
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=self._close_seconds)
        left = tuple(self._waiting)
        for counting in left:
            counting.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _done(self, characters: int, then: Then, counting: asyncio.Future[tuple[int, ...]]) -> None:
        self._waiting.discard(counting)
        self._waiting_characters -= characters
        failure = None if counting.cancelled() else counting.exception()
        if failure is not None:
            self._telemetry.store_failed("tokenizer", "count")
            _log.error("tokens cannot be counted: %s", failure)
        then(None if counting.cancelled() or failure is not None else counting.result())

    def _work(self, encoding: Encoding, said: Sequence[Said]) -> tuple[int, ...]:
        count = self._loaded.get(encoding)
        if count is None:
            count = self._loaded[encoding] = _load(encoding)
        return tuple(_tokens(count, each) for each in said)


def _tokens(count: Count, said: Said) -> int:
    return said.more_tokens + sum(count(piece) for text in said.texts for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text before a space, where no token goes across; between two pieces others get their turn."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = start + _PIECE_CHARACTERS
        seam = text.rfind(" ", end - _SEAM_CHARACTERS, end)
        end = seam if seam > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def _load(encoding: Encoding) -> Count:
    """The counting function of a vocabulary; every text is ordinary to it, special tokens too."""
    vocabulary = _native().tokenizer_for_encoding(encoding)

    def count(text: str) -> int:
        try:
            tokens: int = vocabulary.count(text)
        except UnicodeEncodeError:
            # Half of a surrogate pair, which stands in no vocabulary.
            tokens = vocabulary.count(text.encode("utf-8", "replace").decode())
        return tokens

    count("")
    return count


def _native() -> Any:
    """The package's compiled module by itself.

    Importing the package would load every vocabulary a second time, for encoding: half a second and 70 MB.
    """
    package = importlib.util.find_spec(_PACKAGE)
    places = package.submodule_search_locations if package is not None else None
    spec = importlib.machinery.PathFinder.find_spec(f"{_PACKAGE}._bindings", places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{_PACKAGE} has no compiled module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
