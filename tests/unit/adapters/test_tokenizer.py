import asyncio
import sys
import threading
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.tokenizer import BpeTokenizer, _load, _pieces
from proxy.core.count import Said

with warnings.catch_warnings(action="ignore"):
    # The package reads its data by a function that is out of date.
    import bpe_openai

ORDINARY = {name: bpe_openai.get_encoding(name).encode_ordinary for name in ("o200k_base", "cl100k_base")}
COUNT = {name: _load(name) for name in ORDINARY}


class Failures:
    def __init__(self):
        self.seen = []

    def store_failed(self, store, operation):
        self.seen.append((store, operation))


@pytest.fixture
def failures():
    return Failures()


@pytest.fixture
async def tokenizer(failures):
    tokenizer = BpeTokenizer(failures)
    yield tokenizer
    await tokenizer.close()


async def counted(tokenizer, *said, encoding="o200k_base"):
    told = asyncio.get_running_loop().create_future()
    tokenizer.count_later(encoding, said, told.set_result)
    return await told


@pytest.mark.parametrize("name", COUNT)
@given(text=st.text(max_size=200))
def test_counts_what_the_package_encodes(name, text):
    assert COUNT[name](text) == len(ORDINARY[name](text))


@pytest.mark.parametrize(("text", "tokens"), [("<|endoftext|>", 7), ("", 0), ("tollgate", 3), ("\ud800", 1)])
def test_special_tokens_are_text(text, tokens):
    assert COUNT["o200k_base"](text) == tokens


async def test_nothing_is_loaded_before_it_is_needed_and_never_on_the_loop(tokenizer):
    said = Said(("Hello there",), 5)
    assert tokenizer.count("o200k_base", [said]) is None
    told, release = asyncio.get_running_loop().create_future(), threading.Event()
    tokenizer._thread.submit(release.wait)
    tokenizer.count_later("o200k_base", (said, Said(("Hi",))), told.set_result)
    assert tokenizer._loaded == {}, "the thread is held, and nobody else loads"
    release.set()
    assert await told == (7, 1)
    assert tokenizer.count("o200k_base", [said, Said((), 4)]) == (7, 4)
    assert tokenizer.count("cl100k_base", [said]) is None


async def test_long_texts_are_counted_in_the_thread(tokenizer):
    await counted(tokenizer, Said(("x",)))
    long = "all work and no play " * 3_000
    assert tokenizer.count("o200k_base", [Said((long,))]) is None
    assert tokenizer.count("o200k_base", [Said(("x",) * 1_001)]) is None
    assert await counted(tokenizer, Said((long,))) == (len(ORDINARY["o200k_base"](long)),)


@settings(max_examples=40)
@given(st.text("ab \n", max_size=30), st.integers(1, 6_000))
def test_pieces_are_the_text(unit, times):
    text = unit * times
    pieces = list(_pieces(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 40_000 for piece in pieces)


def test_a_cut_before_a_space_changes_no_count():
    text = "The quick brown fox jumps over the lazy dog. " * 4_000
    assert len(list(_pieces(text))) > 1
    assert sum(map(COUNT["o200k_base"], _pieces(text))) == len(ORDINARY["o200k_base"](text))


async def test_what_cannot_be_counted_is_told_and_seen(tokenizer, failures):
    assert await counted(tokenizer, Said(("x",)), encoding="no_such_base") is None
    assert failures.seen == [("tokenizer", "count")]


async def test_too_much_at_once_is_not_taken(tokenizer):
    large = Said(("x" * (64 << 20), "y"))
    assert await counted(tokenizer, large) is None


async def test_closing_waits_for_what_is_being_counted_and_tells_everybody():
    tokenizer = BpeTokenizer(Failures(), close_seconds=60)
    told = []
    for _ in range(3):
        tokenizer.count_later("o200k_base", [Said(("one two",))], told.append)
    assert told == []
    await tokenizer.close()
    assert told == [(2,)] * 3
    tokenizer.count_later("o200k_base", [Said(("one two",))], told.append)
    assert told[3:] == [None]


async def test_closing_does_not_wait_for_ever():
    tokenizer = BpeTokenizer(Failures(), close_seconds=0.05)
    release, told = threading.Event(), []
    tokenizer._thread.submit(release.wait)
    tokenizer.count_later("o200k_base", [Said(("one two",))], told.append)
    try:
        async with asyncio.timeout(30):
            await tokenizer.close()
    finally:
        release.set()
    assert told == [None]


def test_the_package_itself_is_not_needed():
    import subprocess

    code = (
        "import sys; from proxy.adapters.tokenizer import _load; print(_load('o200k_base')('Hello'));"
        "sys.exit('bpe_openai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
