"""What a request asks for, whatever the endpoint: the fields that the steps of the line work with."""

from __future__ import annotations

from proxy.core.discreet import Discreet
from proxy.core.strict_json import JsonObject

__all__ = ["Asked"]


class Asked(Discreet, frozen=True, gc=False):
    """A checked request; `body` is the parsed object, `raw` the bytes it came as; of a form its texts, and nothing."""

    hidden = frozenset({"body", "raw"})

    body: JsonObject
    raw: bytes
    model: str
    stream: bool = False
    include_usage: bool = False
    """Whether the client is told the usage of a stream: it asked for that, or is told always."""
    choices: int = 1
    """Answers that it gets."""
    generated: int = 1
    """Answers that upstream generates and bills, of which the client may get fewer."""
    max_output_tokens: int | None = None
    """Of each answer, as the client or the endpoint bounds it; None: by nothing."""
    max_output_param: str = "max_tokens"
    """The parameter that bounds it."""
    service_tier: str | None = None
    billed: bool = True
    """Whether upstream may bill it."""
    tells_cost: bool = True
    """Whether its answer can say what it cost."""
    state: str | None = None
    """The parameter that refers to something kept at OpenAI, where all teams share one account."""
