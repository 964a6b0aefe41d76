"""What each setting is called in the environment and on the command line.

`server.port` is `TOLLGATE_PORT`; a key of any other table has the table's name in it (`cache.ttl_seconds` is
`TOLLGATE_CACHE_TTL_SECONDS`); a key outside tables is itself (`TOLLGATE_DATA_DIR`).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

__all__ = ["CONFIG_VARIABLE", "PREFIX", "KeyPath", "dotted", "flag_of", "leaves", "variable_of"]

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of tables and indices of lists, from the outside in."""

PREFIX = "TOLLGATE_"
CONFIG_VARIABLE = "TOLLGATE_CONFIG"

_VARIABLES: dict[KeyPath, str] = {
    ("upstream", "base_url"): "TOLLGATE_UPSTREAM",
    ("upstream", "api_key"): "OPENAI_API_KEY",
    ("outgoing", "https_proxy"): "HTTPS_PROXY",
    ("outgoing", "http_proxy"): "HTTP_PROXY",
    ("outgoing", "no_proxy"): "NO_PROXY",
}
_FLAGS: dict[KeyPath, str] = {("upstream", "base_url"): "--upstream"}


def variable_of(path: KeyPath) -> str:
    """The environment variable of a setting."""
    words = path[1:] if path[0] == "server" and len(path) > 1 else path
    return _VARIABLES.get(path) or PREFIX + "_".join(str(word) for word in words).upper()


def flag_of(path: KeyPath) -> str:
    """The option of a setting."""
    return _FLAGS.get(path) or "--" + str(path[-1]).replace("_", "-")


def dotted(path: KeyPath) -> str:
    """A path as people write it: `limits.tiers.gold[0].lasts`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def leaves(table: type[msgspec.Struct], path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Every setting below a table that is not itself a table, with its type."""
    for field in msgspec.structs.fields(table):
        here = (*path, field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from leaves(field.type, here)
        else:
            yield here, field.type
