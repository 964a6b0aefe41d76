"""The paths of OpenAI's API as this gateway sees them.

Whatever keeps state at OpenAI is closed unless a team was opened to it: all teams share one account there, and one
could read another's. What hands out keys or speaks for the whole organization (`/organization`, `/projects`,
`/realtime`, `/chatkit`) is never passed on.
Source: the paths of OpenAI's API specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

__all__ = ["CHAT", "COMPLETIONS", "EMBEDDINGS", "IMAGES", "IMAGE_EDITS", "IMAGE_VARIATIONS", "ME", "MODELS",
           "MODERATIONS", "PAGE", "RESPONSES", "RESPONSE_INPUT", "SPEECH", "TRANSCRIPTIONS", "TRANSLATIONS", "Passed",
           "never_open", "passed"]  # fmt: skip

CHAT = "chat"
COMPLETIONS = "text_completion"
EMBEDDINGS = "embeddings"
MODERATIONS = "moderations"
RESPONSES = "responses"
RESPONSE_INPUT = "responses_input_tokens"
IMAGES = "image_generation"
IMAGE_EDITS = "image_edit"
IMAGE_VARIATIONS = "image_variation"
SPEECH = "speech"
TRANSCRIPTIONS = "transcription"
TRANSLATIONS = "translation"
MODELS = "models"
ME = "me"
PAGE = "page"


@dataclass(frozen=True, slots=True)
class Passed:
    """A family of paths that are passed on as they are."""

    endpoint: str
    """Under which ledger, metrics and log know it."""
    works: bool
    """What is posted there may have upstream work, and bill, in a way that its answer does not tell."""


_FAMILIES: Mapping[str, Passed] = MappingProxyType(
    {
        "/assistants": Passed("assistants", works=False),
        "/audio/voice_consents": Passed("voices", works=False),
        "/audio/voices": Passed("voices", works=False),
        "/batches": Passed("batches", works=True),
        "/chat/completions": Passed("stored_chat", works=False),
        "/containers": Passed("containers", works=True),
        "/conversations": Passed("conversations", works=False),
        "/evals": Passed("evals", works=True),
        "/files": Passed("files", works=False),
        "/fine_tuning": Passed("fine_tuning", works=True),
        "/responses": Passed("stored_responses", works=True),
        "/skills": Passed("skills", works=False),
        "/threads": Passed("threads", works=True),
        "/uploads": Passed("uploads", works=False),
        "/vector_stores": Passed("vector_stores", works=True),
        "/videos": Passed("videos", works=True),
    }
)
"""What keeps state at OpenAI, by the beginning of its paths."""
_NEVER = ("/organization",)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
"""Not TRACE: it answers with the request, and so with our key."""
_LISTED = frozenset({"GET", "HEAD"})
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))(?:[A-Za-z0-9_.~:@=+,-]|%(?!2[EF]|5C|25|[01][0-9A-F]|7F)[0-9A-F]{2})+)+",
                   re.ASCII | re.IGNORECASE)  # fmt: skip
"""One that everybody on the way reads as the same path: no empty or dot segment, nothing encoded that makes one."""


def never_open(path: str) -> bool:
    """Whether `path` (below the version) exists and is closed to every team."""
    return any(path == each or path.startswith(f"{each}/") for each in _NEVER)


def passed(method: str, path: str) -> Passed | None:
    """How a request is passed on to what is kept at OpenAI; None for one that never is."""
    family = _family(path)
    if family is None or method not in _METHODS or _PATH.fullmatch(path) is None:
        return None
    if path == "/responses" or (path == "/chat/completions" and method not in _LISTED):
        return None  # what is asked there is metered, or does not exist
    works = family.works and method == "POST" and not path.endswith("/cancel")
    return replace(family, works=works)


def _family(path: str) -> Passed | None:
    first = path.find("/", 1)
    head = path if first < 0 else path[:first]
    if head in {"/chat", "/audio"}:
        second = path.find("/", first + 1)
        head = path if second < 0 else path[:second]
    return _FAMILIES.get(head)
