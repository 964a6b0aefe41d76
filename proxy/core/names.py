"""What teams, keys, tiers and models may be called: one rule for each, wherever the name comes from.

A name ends up in tables, logs, metrics and on terminals; all of them can be sure that it is one line of printable
text of a bounded length. Printable is what Unicode says of it: no control, no mark of direction, no lone surrogate.
"""

from __future__ import annotations

import re

from proxy.core.registry import BadName, BadValue

__all__ = [
    "MAX_LABEL_CHARACTERS",
    "MAX_MODELS",
    "MAX_MODEL_CHARACTERS",
    "checked_label",
    "checked_model",
    "checked_models",
    "checked_name",
    "checked_tier",
    "is_name",
]

MAX_LABEL_CHARACTERS = 200
MAX_MODEL_CHARACTERS = 256
MAX_MODELS = 1_000
"""Models one team or key can be held to."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_TIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def is_name(name: str) -> bool:
    """Whether a team can be called this; no other name is worth asking a database for, and some cannot be asked for."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """The name of a team itself; raises `BadName`."""
    if not is_name(name):
        raise BadName(name)
    return name


def checked_tier(field: str, tier: str) -> str:
    """The name of a tier itself; whether there is such a tier is for the settings to say. Raises `BadValue`."""
    if _TIER.fullmatch(tier) is None:
        raise BadValue(field, "must be the name of a tier")
    return tier


def checked_label(label: str) -> str:
    """The label itself, which may be empty. Raises `BadValue`."""
    if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise BadValue("label", f"must be printable, and at most {MAX_LABEL_CHARACTERS} characters")
    return label


def checked_model(model: str, field: str = "model") -> str:
    """The name of a model itself. Raises `BadValue`."""
    if not 0 < len(model) <= MAX_MODEL_CHARACTERS or not model.isprintable():
        raise BadValue(field, f"must be printable, and 1 to {MAX_MODEL_CHARACTERS} characters")
    return model


def checked_models(models: frozenset[str] | None) -> frozenset[str] | None:
    """The names of models themselves; None is all of them. Raises `BadValue`."""
    if models is None:
        return None
    if len(models) > MAX_MODELS:
        raise BadValue("models", f"must be at most {MAX_MODELS:,} names")
    for model in models:
        checked_model(model, "models")
    return models
