"""Legacy completions: from a request to its text and usage, without time or chance.

Prompts are counted as embeddings' inputs are; completion tokens are the pieces of text of every candidate, of those too
that `best_of` throws away. A prompt that begins with `echo:` is answered with what comes after it; `echo` puts the
prompt before the text, where it costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat import ECHO
from proxy.simulator.chat_request import StreamOptions, decode
from proxy.simulator.endpoint import ERROR_EVENT, Endpoint, Frame, Stamp
from proxy.simulator.heads import JSON
from proxy.simulator.inputs import Inputs, each_of, tokens_of
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.refusal import Refusal
from proxy.simulator.words import digest_of, split, words

__all__ = ["completions_endpoint"]

_DEFAULT_MAX_TOKENS = 16
_DONE = b"data: [DONE]\n\n"


class _Request(msgspec.Struct, frozen=True):
    model: str
    prompt: Inputs | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


_DECODER = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class _Choice:
    index: int
    opening: str
    """The prompt, where it is echoed."""
    pieces: tuple[str, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class _CompletionAnswer:
    """See `endpoint.Answer`."""

    model: str
    choices: tuple[_Choice, ...]
    input_tokens: int
    output_tokens: int
    limit_tokens: int
    stream: bool
    include_usage: bool
    terminator: bytes = _DONE
    error_event: bytes = ERROR_EVENT
    content_type: str = JSON

    @property
    def pauses(self) -> int:
        """One between any two pieces of text."""
        return max(self.output_tokens - 1, 0)

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """The plain form; `usage` false leaves the usage out."""
        choices = [_entry(each.index, each.opening + "".join(each.pieces), each.finish_reason) for each in self.choices]
        told = {"usage": self._usage()} if usage else {}
        return msgspec.json.encode({**self._head(stamp), "choices": choices, **told})

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:
        """The streamed form: pieces of all choices in turn; a last chunk for the usage, where it was asked for."""
        usage = usage and self.include_usage
        more: dict[str, object] = {"usage": None} if usage else {}

        def frame(choices: list[dict[str, object]], tokens: int = 0) -> Frame:
            chunk = {**self._head(stamp), "choices": choices, **more}
            return Frame(b"data: " + msgspec.json.encode(chunk) + b"\n\n", tokens)

        for each in self.choices:
            if each.opening:
                yield frame([_entry(each.index, each.opening, None)])
        for turn in range(max(len(each.pieces) for each in self.choices)):
            for each in self.choices:
                if turn < len(each.pieces):
                    yield frame([_entry(each.index, each.pieces[turn], None)], 1)
        for each in self.choices:
            yield frame([_entry(each.index, "", each.finish_reason)])
        if usage:
            more["usage"] = self._usage()
            yield frame([])

    def _head(self, stamp: Stamp) -> dict[str, object]:
        return {
            "id": f"cmpl-{stamp.serial}",
            "object": "text_completion",
            "created": stamp.created,
            "model": self.model,
        }

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }


def completions_endpoint(behaviour: Behaviour) -> Endpoint:
    """`POST /v1/completions`."""

    def endpoint(body: bytes) -> _CompletionAnswer:
        request = decode(_DECODER, body)
        model = resolve(request.model, ModelKind.COMPLETION)
        n, candidates = request.n or 1, request.best_of or request.n or 1
        if candidates < n or (request.stream and candidates > n):
            raise Refusal(400, "'best_of' must be at least 'n', and cannot be streamed.", param="best_of")
        prompts = [""] if request.prompt in (None, "") else each_of(request.prompt or "", "prompt")
        generated = [
            [_pieces(request, prompt, number, behaviour) for number in range(candidates)] for prompt in prompts
        ]
        choices = [
            _choice(request, prompt, at * n + number, generated[at][number])
            for at, prompt in enumerate(prompts)
            for number in range(n)
        ]
        read = sum(map(tokens_of, prompts)) + tokens_of(request.suffix or "")
        return _CompletionAnswer(
            model=model,
            choices=tuple(choices),
            input_tokens=read,
            output_tokens=sum(len(pieces) for candidate in generated for pieces, _ in candidate),
            limit_tokens=max(read, _most(request), 1),
            stream=bool(request.stream),
            include_usage=bool(request.stream_options and request.stream_options.include_usage),
        )

    return endpoint


def _most(request: _Request) -> int:
    return _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


def _pieces(request: _Request, prompt: str | list[int], number: int, behaviour: Behaviour) -> tuple[list[str], str]:
    """The pieces of one candidate, and why they end."""
    if isinstance(prompt, str) and prompt.startswith(ECHO):
        pieces = split(prompt.removeprefix(ECHO))
    else:
        digest = digest_of(behaviour.seed, request.model, request.seed, number, prompt, request.suffix)
        pieces = words(digest, behaviour.tokens)
    most = _most(request)
    return (pieces[:most], "length") if most < len(pieces) else (pieces, "stop")


def _choice(request: _Request, prompt: str | list[int], index: int, generated: tuple[list[str], str]) -> _Choice:
    pieces, finish_reason = generated
    text = prompt if isinstance(prompt, str) else "".join(f"<{number}>" for number in prompt)
    return _Choice(index, text if request.echo else "", tuple(pieces), finish_reason)


def _entry(index: int, text: str, finish_reason: str | None) -> dict[str, object]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}
