"""The one table of what is metered: how an endpoint's requests and answers are read, estimated and told again.

Names are GenAI operation names where there is one; ledger, metrics and log know an endpoint by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from proxy.core.answer import AnswerStream, ChatStream, Completion, parse_completion
from proxy.core.asked import Asked
from proxy.core.chat import parse_chat
from proxy.core.completions import estimate_prompts, parse_completions, prompt_of_completions
from proxy.core.count import Said, prompt_of
from proxy.core.determinism import completion_nondeterminism, nondeterminism
from proxy.core.embeddings import (
    embedding_nondeterminism,
    estimate_embeddings,
    parse_embeddings,
    prompt_of_embeddings,
    read_embeddings,
)
from proxy.core.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSE_INPUT, RESPONSES
from proxy.core.estimate import estimate_input
from proxy.core.moderations import (
    estimate_moderation,
    moderation_nondeterminism,
    parse_moderation,
    prompt_of_moderation,
    read_moderation,
)
from proxy.core.replay import AS_IT_CAME, BOTH_FORMS, EACH_FORM, Telling
from proxy.core.responses import (
    estimate_response,
    no_cache,
    nothing,
    parse_input_tokens,
    parse_response,
    prompt_of_response,
    response_nondeterminism,
)
from proxy.core.responses_answer import ResponsesStream, read_input_tokens, read_response
from proxy.core.strict_json import JsonObject

__all__ = ["KINDS", "Kind"]


def _chat_stream(asked: Asked) -> AnswerStream:
    return ChatStream(choices=asked.choices, hide_usage=not asked.include_usage)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the steps of the line do differently for one endpoint."""

    path: str
    """Below the version; it is asked with POST."""
    parse: Callable[[JsonObject, bytes], Asked]
    """Check a parsed body, and the bytes it came as. Raises `InvalidRequest`."""
    estimate: Callable[[Asked], int]
    """Tokens to reserve for what upstream reads."""
    prompt: Callable[[Asked], Said]
    """What a tokenizer counts of it, where upstream gave no usage."""
    nondeterminism: Callable[[JsonObject], str | None]
    """What keeps a body from being answered twice with one answer."""
    read: Callable[[bytes], Completion]
    """Read a plain answer; one that cannot be read has no usage."""
    listen: Callable[[Asked], AnswerStream] | None = None
    """Follow a streamed answer; None: there are none."""
    telling: Telling = BOTH_FORMS
    """How an answer is told again from the cache."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        CHAT: Kind(
            path="/chat/completions",
            parse=parse_chat,
            estimate=estimate_input,
            prompt=prompt_of,
            nondeterminism=nondeterminism,
            read=parse_completion,
            listen=_chat_stream,
        ),
        COMPLETIONS: Kind(
            path="/completions",
            parse=parse_completions,
            estimate=estimate_prompts,
            prompt=prompt_of_completions,
            nondeterminism=completion_nondeterminism,
            read=parse_completion,
            listen=_chat_stream,
            telling=EACH_FORM,
        ),
        EMBEDDINGS: Kind(
            path="/embeddings",
            parse=parse_embeddings,
            estimate=estimate_embeddings,
            prompt=prompt_of_embeddings,
            nondeterminism=embedding_nondeterminism,
            read=read_embeddings,
        ),
        MODERATIONS: Kind(
            path="/moderations",
            parse=parse_moderation,
            estimate=estimate_moderation,
            prompt=prompt_of_moderation,
            nondeterminism=moderation_nondeterminism,
            read=read_moderation,
        ),
        RESPONSES: Kind(
            path="/responses",
            parse=parse_response,
            estimate=estimate_response,
            prompt=prompt_of_response,
            nondeterminism=response_nondeterminism,
            read=read_response,
            listen=lambda _: ResponsesStream(),
            telling=AS_IT_CAME,
        ),
        RESPONSE_INPUT: Kind(
            path="/responses/input_tokens",
            parse=parse_input_tokens,
            estimate=nothing,
            prompt=lambda _: Said(),
            nondeterminism=no_cache,
            read=read_input_tokens,
        ),
    }
)
