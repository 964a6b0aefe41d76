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
from proxy.core.endpoints import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    IMAGE_EDITS,
    IMAGE_VARIATIONS,
    IMAGES,
    MODERATIONS,
    RESPONSE_INPUT,
    RESPONSES,
    SPEECH,
    TRANSCRIPTIONS,
    TRANSLATIONS,
)
from proxy.core.estimate import estimate_input
from proxy.core.media import (
    estimate_media,
    form_only,
    parse_audio_form,
    parse_image,
    parse_image_edit,
    parse_image_edit_form,
    parse_speech,
    parse_variation_form,
    prompt_of_media,
)
from proxy.core.media_answer import Media, image_usage, speech_usage, transcript_usage
from proxy.core.moderations import (
    estimate_moderation,
    moderation_nondeterminism,
    parse_moderation,
    prompt_of_moderation,
    read_moderation,
)
from proxy.core.multipart import Form
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

__all__ = ["KINDS", "PASSED", "Kind"]


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
    parse_form: Callable[[Form], Asked] | None = None
    """Check a request that comes as a form; None: none does."""
    media: Media | None = None
    """Its answers are passed on without being held, and followed by this."""


def _media(
    path: str,
    media: Media,
    parse: Callable[[JsonObject, bytes], Asked] = form_only,
    parse_form: Callable[[Form], Asked] | None = None,
) -> Kind:
    return Kind(
        path=path,
        parse=parse,
        estimate=estimate_media,
        prompt=prompt_of_media,
        nondeterminism=no_cache,
        read=_unread,
        parse_form=parse_form,
        media=media,
    )


def _unread(_: bytes) -> Completion:
    return Completion(None, None, storable=False, counted_output_tokens=0)


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
        IMAGES: _media("/images/generations", Media(image_usage), parse_image),
        IMAGE_EDITS: _media("/images/edits", Media(image_usage), parse_image_edit, parse_image_edit_form),
        IMAGE_VARIATIONS: _media("/images/variations", Media(image_usage), parse_form=parse_variation_form),
        SPEECH: _media("/audio/speech", Media(speech_usage), parse_speech),
        TRANSCRIPTIONS: _media("/audio/transcriptions", Media(transcript_usage), parse_form=parse_audio_form),
        TRANSLATIONS: _media("/audio/translations", Media(transcript_usage), parse_form=parse_audio_form),
    }
)

PASSED = Kind(
    path="",
    parse=form_only,
    estimate=nothing,
    prompt=lambda _: Said(),
    nondeterminism=no_cache,
    read=_unread,
)
"""Of what is passed on unread, to and from what is kept at OpenAI: it is one request, and no more is known."""
