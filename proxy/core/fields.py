"""Checks of the fields of a request, with the words and codes that OpenAI refuses with."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import JsonObject

__all__ = ["MAX_OUTPUT_TOKENS", "NUMBER", "Ranges", "Types", "check_fields", "checked_model", "missing", "out_of_range",
           "wrong_type"]  # fmt: skip

MAX_OUTPUT_TOKENS = 2**31 - 1
NUMBER = (int, float)
_MAX_MODEL_CHARACTERS = 256
_JSON_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}

Types = Mapping[str, tuple[type, ...]]
"""Name of a field -> what its value may be; null stands for absent."""
Ranges = Mapping[str, tuple[float, float]]
"""Name of a field -> the least and the most its number may be."""


def check_fields(body: JsonObject, types: Types, ranges: Ranges) -> None:
    """Check those fields of `body` that are known. Raises `InvalidRequest` naming the parameter.

    A name that is a known one but for its case is refused: an upstream may not mind (Go, .NET), and would be told of
    another model, or of more tokens, than were looked at here.
    """
    for name, value in body.items():
        kinds = types.get(name)
        if kinds is None:
            if (folded := name.casefold()) != name and folded in types:
                raise InvalidRequest(
                    f"Unknown parameter: '{name}'. Did you mean '{folded}'?", param=name, code="unknown_parameter"
                )
            continue
        if value is None:
            continue
        # bool is an int to Python, never to JSON.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise wrong_type(name, kinds)
        if name in ranges and isinstance(value, int | float):
            least, most = ranges[name]
            if not least <= value <= most:
                raise out_of_range(name, value, ranges[name], decimal=float in kinds)


def checked_model(model: str | None) -> str:
    """Return the name of a model. Raises `InvalidRequest`."""
    if not model:
        raise missing("model", "You must provide a model parameter.")
    if len(model) > _MAX_MODEL_CHARACTERS:
        raise InvalidRequest("The model's name is too long.", param="model")
    return model


def missing(param: str, message: str) -> InvalidRequest:
    """The error for a parameter that must be there."""
    return InvalidRequest(message, param=param, code="missing_required_parameter")


def wrong_type(param: str, kinds: tuple[type, ...]) -> InvalidRequest:
    """The error for a value that is none of `kinds`."""
    names = " or ".join(
        "a number" if kinds is NUMBER else _JSON_NAMES[kind] for kind in kinds[: 1 if kinds is NUMBER else None]
    )
    return InvalidRequest(f"Invalid type for '{param}': expected {names}.", param=param, code="invalid_type")


def out_of_range(param: str, value: float, bounds: tuple[float, float], *, decimal: bool) -> InvalidRequest:
    """The error for a number that is out of its range."""
    side, bound = ("below_min", bounds[0]) if value < bounds[0] else ("above_max", bounds[1])
    kind = "decimal" if decimal else "integer"
    words = "at least" if value < bounds[0] else "at most"
    return InvalidRequest(
        f"Invalid '{param}': {words} {bound:g} is expected.", param=param, code=f"{kind}_{side}_value"
    )
