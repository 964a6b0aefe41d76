"""What is wrong with upstreams and with other names of models, beyond what a type can say."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from proxy.settings.decode import Finding
from proxy.settings.names import PREFIX, KeyPath
from proxy.settings.problem import nearest
from proxy.settings.schema import Settings
from proxy.settings.sections import DEFAULT_UPSTREAM_URL, UpstreamSettings
from proxy.settings.upstreams import NamedUpstreamSettings, UpstreamKind

__all__ = ["alias_findings", "upstreams_findings", "url_findings"]

_OF_ONE_ALONE = ("name", "base_url", "api_key_file", "requests_per_minute", "tokens_per_minute")
"""What `[upstream]` says of the one upstream there is; the rest of it holds for calls to any."""


def url_findings(path: KeyPath, base_url: str, remedy: str) -> Iterator[Finding]:
    """What is wrong with the URL of an upstream; `remedy` says where its key belongs."""
    try:
        url = urlsplit(base_url)
        host, _ = url.hostname, url.port
    except ValueError:
        yield Finding(path, "not a URL")
        return
    if url.scheme not in {"http", "https"} or not host:
        yield Finding(path, "expected an http:// or https:// URL")
    elif "@" in url.netloc:
        yield Finding(path, "must not carry credentials", remedy)
    elif url.query or url.fragment:
        yield Finding(path, "must not carry a query or fragment")


def upstreams_findings(settings: Settings) -> Iterator[Finding]:
    """What is wrong with `[upstreams]`, and with an `[upstream]` beside it."""
    if not settings.upstreams:
        return
    defaults = msgspec.structs.asdict(UpstreamSettings())
    for name in _OF_ONE_ALONE:
        if getattr(settings.upstream, name) != defaults[name]:
            remedy = "leave it out, or put it into the table of one of [upstreams]"
            yield Finding(("upstream", name), "is said of the only upstream, and there are [upstreams]", remedy)
    for name, upstream in settings.upstreams.items():
        path: KeyPath = ("upstreams", name)
        remedy = f"name a file of keys with upstreams.{name}.api_key_file, or a variable with api_key_variable"
        yield from url_findings((*path, "base_url"), upstream.base_url, remedy)
        yield from _of_its_kind(path, upstream)
        yield from _keys(path, upstream)
        if upstream.models is not None and not upstream.models:
            yield Finding((*path, "models"), "names no model, so nothing would be asked there", "leave it out for all")


def _of_its_kind(path: KeyPath, upstream: NamedUpstreamSettings) -> Iterator[Finding]:
    kind = upstream.kind
    if kind is not UpstreamKind.OPENAI and upstream.base_url == DEFAULT_UPSTREAM_URL:
        example = 'base_url = "https://RESOURCE.openai.azure.com"' if kind is UpstreamKind.AZURE else None
        yield Finding((*path, "base_url"), f"an upstream of kind {kind} is somewhere else", example)
    if kind is not UpstreamKind.AZURE:
        if upstream.api_version is not None:
            yield Finding((*path, "api_version"), 'has no meaning but for kind = "azure"')
        return
    try:
        place = urlsplit(upstream.base_url).path.strip("/")
    except ValueError:
        place = ""
    if place:
        yield Finding((*path, "base_url"), f"of Azure is the resource alone: leave /{place} out")
    if upstream.models is None:
        yield Finding(
            (*path, "models"),
            "Azure serves what is deployed there: name the deployments, by model",
            f'[upstreams.{path[1]}.models] and "gpt-4o" = "my-deployment"',
        )


def _keys(path: KeyPath, upstream: NamedUpstreamSettings) -> Iterator[Finding]:
    variable = upstream.api_key_variable
    if variable is not None and variable.startswith(PREFIX):
        message = f"variables that begin with {PREFIX} are settings; call it something else"
        yield Finding((*path, "api_key_variable"), message)
    source = (*path, "api_key_file" if upstream.api_key_file is not None else "api_key_variable")
    if not all("!" <= letter <= "~" for key in upstream.api_keys for letter in key.reveal()):
        yield Finding(source, "keys must be printable ASCII, with blanks or line breaks between them")
    if len(set(upstream.api_keys)) < len(upstream.api_keys):
        yield Finding(source, "holds one key twice")


def alias_findings(settings: Settings) -> Iterator[Finding]:
    """What is wrong with other names of models."""
    aliases = settings.models.aliases
    maps = [upstream.models for upstream in settings.upstreams.values()]
    served = None if not maps or None in maps else {model for models in maps for model in models or ()}
    for alias, model in aliases.items():
        path = ("models", "aliases", alias)
        if alias == model:
            yield Finding(path, "is another name of itself")
        elif model in aliases:
            yield Finding(path, f"{model} is an alias itself; name the model", f'"{alias}" = "{aliases[model]}"')
        elif served is not None and model not in served:
            yield Finding(path, f"no upstream serves {model}", nearest(model, served))
