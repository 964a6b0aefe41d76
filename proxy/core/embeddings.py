"""What an embeddings request asks for, and what its answer says.

Source of names and ranges: OpenAI's API specification, `CreateEmbeddingRequest` and `CreateEmbeddingResponse`.
"""

from __future__ import annotations

from types import MappingProxyType

from proxy.core.answer import Completion
from proxy.core.asked import Asked
from proxy.core.count import Said
from proxy.core.fields import MAX_OUTPUT_TOKENS, Ranges, Types, check_fields, checked_model
from proxy.core.inputs import check_inputs, estimate_of, said_in
from proxy.core.strict_json import JsonObject
from proxy.core.usage_forms import parse_plain

__all__ = ["embedding_nondeterminism", "estimate_embeddings", "parse_embeddings", "prompt_of_embeddings",
           "read_embeddings"]  # fmt: skip

_TYPES: Types = MappingProxyType(
    {"dimensions": (int,), "encoding_format": (str,), "input": (str, list), "model": (str,), "user": (str,)}
)
_RANGES: Ranges = MappingProxyType({"dimensions": (1, MAX_OUTPUT_TOKENS)})


def parse_embeddings(body: JsonObject, raw: bytes) -> Asked:
    """Check `body`, the strictly parsed form of `raw`. Raises `InvalidRequest` naming the parameter."""
    check_fields(body, _TYPES, _RANGES)
    model = checked_model(body.get("model"))
    check_inputs("input", body.get("input"))
    return Asked(body, raw, model, max_output_tokens=0)


def estimate_embeddings(asked: Asked) -> int:
    """Tokens of all inputs."""
    return estimate_of(asked.body["input"])


def prompt_of_embeddings(asked: Asked) -> Said:
    """What upstream reads."""
    return said_in(asked, "input")


def embedding_nondeterminism(_: JsonObject) -> None:
    """Nothing: a model gives a text the same vector each time."""
    return


def read_embeddings(body: bytes) -> Completion:
    """Read an answer; one without usage is not storable. There is no output to count."""
    usage = parse_plain(body).counted()
    return Completion(usage, None, storable=usage is not None, counted_output_tokens=0, said=Said())
