"""`[upstreams.NAME]`: each of several APIs that Tollgate stands in front of."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from proxy.settings.secret import Secret
from proxy.settings.sections import DEFAULT_UPSTREAM_URL, Count, ModelName, Seconds, Section, VariableName

__all__ = ["NamedUpstreamSettings", "UpstreamKind"]


class UpstreamKind(StrEnum):
    """Whose wire an upstream speaks."""

    OPENAI = "openai"
    AZURE = "azure"
    """Azure OpenAI: deployments in the path, or its v1 API."""
    COMPATIBLE = "compatible"
    """OpenAI's wire from somebody else: nothing is expected that is OpenAI's alone."""


class NamedUpstreamSettings(Section, frozen=True, kw_only=True):
    """`[upstreams.NAME]`: one of several, called by its name in metrics, logs and the ledger."""

    kind: UpstreamKind = UpstreamKind.OPENAI
    """Whose wire it speaks."""
    base_url: Annotated[str, Meta(min_length=1)] = DEFAULT_UPSTREAM_URL
    """Where it is, version included and without a slash at the end; of Azure the resource alone."""
    api_keys: tuple[Secret, ...] = ()
    """The keys sent to it, in turn; from `api_key_variable` or `api_key_file`, never in the settings file."""
    api_key_file: Path | None = None
    """A file that holds its keys, one a line."""
    api_key_variable: VariableName | None = None
    """A variable of the environment that holds its keys, with blanks between them; wins over the file."""
    weight: Annotated[int, Meta(ge=1, le=1_000)] = 1
    """How often it is drawn against the others of its priority."""
    priority: Annotated[int, Meta(ge=0, le=1_000)] = 0
    """The smallest is asked first, the others when that fails."""
    models: dict[ModelName, ModelName] | None = None
    """What it serves, and what each model is called there; absent: every model under its own name."""
    ask_for_usage: bool | None = None
    """Whether it is asked for the usage of a stream where the client did not; absent: as `[streams]` says, and of kind
    `compatible` not."""
    api_version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.-]{1,64}$")] | None = None
    """Of Azure alone: a dated version of its API; absent: its v1 API."""
    requests_per_minute: Count | None = None
    """Pace of calls under each of its keys; absent: not paced."""
    tokens_per_minute: Count | None = None
    """Tokens of calls under each of its keys; absent: not paced."""
    connect_timeout_seconds: Seconds | None = None
    """Longest wait for a connection; absent: that of `[upstream]`."""
    read_timeout_seconds: Seconds | None = None
    """Longest silence between two reads of an answer; absent: that of `[upstream]`."""
    max_connections: Count | None = None
    """Connections open at once, per worker; absent: that of `[upstream]`."""

    @property
    def wants_key(self) -> bool:
        """Whether it is known to take no calls without a key."""
        known = self.kind is UpstreamKind.AZURE or self.base_url == DEFAULT_UPSTREAM_URL
        return known or self.api_key_variable is not None or self.api_key_file is not None
