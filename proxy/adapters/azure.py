"""Azure OpenAI as an upstream: its paths, and the header its keys go in.

Sources: Azure's v1 API (learn.microsoft.com, "Azure OpenAI in Microsoft Foundry Models v1 API": `/openai/v1`, the
deployment as `model`, no version or `api-version=preview`), its REST API reference (dated versions: `api-version` in
the query, `api-key` in the head, `/openai/deployments/{deployment}`), and OpenAI's Python SDK (`lib/azure.py`), which
has the list of endpoints that live below a deployment; the others are found below `/openai`.
"""

from __future__ import annotations

from urllib.parse import quote, unquote_plus

import aiohttp

from proxy.adapters.openai import OpenAIUpstream
from proxy.adapters.pacer import Pacer
from proxy.ports import UpstreamRequest

__all__ = ["AzureUpstream"]

_BELOW_A_DEPLOYMENT = frozenset(
    {
        "/completions", "/chat/completions", "/embeddings", "/audio/transcriptions", "/audio/translations",
        "/audio/speech", "/images/generations", "/images/edits",
    }
)  # fmt: skip
_UNDATED = frozenset({"preview", "latest", "v1"})
"""Versions of the v1 API."""
_PARAMETER = "api-version"


class AzureUpstream(OpenAIUpstream):
    """Keeps the promises of `ports.Upstream` for a resource of Azure OpenAI; `base_url` is the resource alone."""

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None,
        session: aiohttp.ClientSession,
        pacer: Pacer | None = None,
        *,
        api_version: str | None = None,
    ) -> None:
        super().__init__(name, base_url, api_key, session, pacer)
        self._version = api_version
        self._is_dated = api_version is not None and api_version not in _UNDATED
        self.identity = f"{self._base_url}/openai?{_PARAMETER}={api_version or 'v1'}"

    def _target(self, request: UpstreamRequest) -> str:
        path, _, query = request.path_qs.partition("?")
        if not self._is_dated:
            below = "/openai/v1"
        elif path in _BELOW_A_DEPLOYMENT and request.model:
            below = f"/openai/deployments/{quote(request.model, safe='')}"
        else:
            below = "/openai"
        # What the client says of a version is about the API it thinks it speaks to.
        kept = [part for part in query.split("&") if part and _name_of(part) != _PARAMETER]
        if self._version is not None and self._version != "v1":
            kept.append(f"{_PARAMETER}={self._version}")
        return f"{self._path_before}{below}{path}{'?' if kept else ''}{'&'.join(kept)}"

    def _key_headers(self) -> list[tuple[str, str]]:
        return [] if self._api_key is None else [("api-key", self._api_key)]


def _name_of(part: str) -> str:
    """The name in one part of a query, as a server that minds neither case nor encoding reads it."""
    return unquote_plus(part.partition("=")[0]).strip().lower()
