"""Where a path leads: the paths of OpenAI's SDKs, and those of Azure's, which lead to the same endpoints."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["VERSION_PREFIX", "Place", "place_of", "without_api_version"]

VERSION_PREFIX = "/v1"
_BASES = (f"{VERSION_PREFIX}/", "/openai/v1/", "/openai/")
"""What the API is found under, in this order: OpenAI's, then Azure's with and without a version in the path."""
_DEPLOYMENTS = "deployments/"
_API_VERSION = "api-version"


class Place(NamedTuple):
    """What a path names."""

    path: str
    """Below the version, as it was sent: `/chat/completions`."""
    deployment: str = ""
    """The model that an Azure path names, decoded; empty: none."""


def place_of(path: str) -> Place | None:
    """What a path as it was sent names; None: nothing that could be the API's.

    `/v1/P`, `/openai/v1/P` and `/openai/P` are one place, and so are they with `deployments/MODEL/` before P.
    """
    for base in _BASES:
        if path.startswith(base):
            below = path[len(base) :]
            break
    else:
        return None
    if not below.startswith(_DEPLOYMENTS):
        return Place(f"/{below}")
    name, slash, rest = below.removeprefix(_DEPLOYMENTS).partition("/")
    deployment = unquote(name)
    # A line end in it would be one of the form that it is put into.
    return Place(f"/{rest}", deployment) if name and slash and deployment.isprintable() else None


def without_api_version(query: str) -> str:
    """The query as it was sent, but for the version that Azure's SDKs put there: OpenAI's API knows none."""
    if _API_VERSION not in query:
        return query
    return "&".join(part for part in query.split("&") if part.partition("=")[0] != _API_VERSION)
