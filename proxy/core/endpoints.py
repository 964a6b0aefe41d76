"""The paths of OpenAI's API as this gateway sees them.

Whatever keeps state at OpenAI is closed: all teams share one account there, and one could read another's.
Source: the paths of OpenAI's API specification.
"""

from __future__ import annotations

__all__ = ["CHAT", "COMPLETIONS", "EMBEDDINGS", "ME", "MODELS", "MODERATIONS", "RESPONSES", "RESPONSE_INPUT",
           "is_stateful"]  # fmt: skip

CHAT = "chat"
COMPLETIONS = "text_completion"
EMBEDDINGS = "embeddings"
MODERATIONS = "moderations"
RESPONSES = "responses"
RESPONSE_INPUT = "responses_input_tokens"
MODELS = "models"
ME = "me"

_STATEFUL = (
    "/assistants", "/batches", "/chat/completions/", "/containers", "/conversations", "/evals", "/files",
    "/fine_tuning", "/organization", "/responses/", "/skills", "/threads", "/uploads", "/vector_stores", "/videos",
)  # fmt: skip


def is_stateful(path: str) -> bool:
    """Whether `path` (below the version) leads to something that is kept at OpenAI."""
    return any(
        path.startswith(prefix) if prefix.endswith("/") else path == prefix or path.startswith(f"{prefix}/")
        for prefix in _STATEFUL
    )
