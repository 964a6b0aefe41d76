"""Settings from a TOML file, the environment and the command line, each winning over the one before."""

from __future__ import annotations

import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from proxy.settings.decode import Finding, decode_table, decode_value, table_type
from proxy.settings.lines import key_lines
from proxy.settings.names import CONFIG_VARIABLE, PREFIX, KeyPath, dotted, flag_of, leaves, variable_of
from proxy.settings.problem import COMMAND_LINE, ENVIRONMENT, Origin, Problem, SettingsError, nearest
from proxy.settings.rules import findings
from proxy.settings.schema import Settings
from proxy.settings.secret import Secret

__all__ = ["load"]

_API_KEY: KeyPath = ("upstream", "api_key")
_CACHE_KEY: KeyPath = ("cache", "key")
_ADMIN_TOKEN: KeyPath = ("server", "admin_token")
_WEBHOOK_SECRET: KeyPath = ("budgets", "webhook_secret")
_NOT_IN_THE_FILE = {
    _API_KEY: "set OPENAI_API_KEY or upstream.api_key_file",
    _CACHE_KEY: "set TOLLGATE_CACHE_KEY or cache.key_file",
    _WEBHOOK_SECRET: "set TOLLGATE_BUDGETS_WEBHOOK_SECRET or budgets.webhook_secret_file",
    _ADMIN_TOKEN: "set TOLLGATE_ADMIN_TOKEN or server.admin_token_file",
}
"""Secrets, and where they may be written. Each has a neighbour `<name>_file`."""
_READ_AT_THE_START = (_API_KEY, _CACHE_KEY, _WEBHOOK_SECRET)
"""Secrets whose `<name>_file` is read with the settings; the others are followed as they change."""
_LEAVES = dict(leaves(Settings))
_VARIABLES = {variable_of(path): path for path, kind in _LEAVES.items() if typing.get_origin(kind) is not dict}
"""All but tables of things that are named in the file: tiers, upstreams, aliases."""
_NAMED_KEYS = ("api_key", "api_keys")
_IN_SMALL_LETTERS = ("https_proxy", "http_proxy", "no_proxy")
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)")
_NO_SERVICE_LINKS = "a Kubernetes service link? set enableServiceLinks: false in the pod's spec"

Values = dict[KeyPath, object]
_Table = TypeVar("_Table", bound=msgspec.Struct)


def load(
    config_path: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """The settings of this process.

    `config_path`: the TOML file; None: the one TOLLGATE_CONFIG names, or none. `environ`: None for the process's own;
    an empty variable counts as absent. `overrides`: values of options by dotted key (`{"server.port": 8080}`); None
    counts as absent. Raises `SettingsError` with everything that is wrong in any of them.
    """
    environ = os.environ if environ is None else environ  # noqa: TID251  # the one place that reads it
    environ = {name: value for name, value in environ.items() if value}
    # Other programs read these in small letters first.
    environ |= {name.upper(): environ[name] for name in _IN_SMALL_LETTERS if name in environ}
    problems: list[Problem] = []
    file = _File(config_path or environ.get(CONFIG_VARIABLE))
    tree = file.read(problems)
    from_environment = _from_environment(environ, problems)
    from_options = _from_options(overrides or {}, problems)
    written = from_environment | from_options
    for path, value in written.items():
        table = tree
        for step in path[:-1]:
            table = table.setdefault(str(step), {})
        table[str(path[-1])] = value
    origins = {path: Origin(ENVIRONMENT, variable_of(path)) for path in from_environment}
    origins |= {path: Origin(COMMAND_LINE, flag_of(path)) for path in from_options}
    for path in _READ_AT_THE_START:
        _read_key_file(path, tree, origins, file, problems)
    _read_keys_of_upstreams(tree, environ, file, problems)
    if problems:
        raise SettingsError(problems)
    upstream = tree.get("upstream", {})
    if "base_url" in upstream:
        upstream["base_url"] = upstream["base_url"].rstrip("/")
    settings = _built(Settings, tree)
    found = findings(settings)
    if found:
        raise SettingsError([_located(finding, origins, file) for finding in found])
    return settings


class _File:
    """The settings file, and where its keys stand; lines are looked for only once something is wrong."""

    def __init__(self, path: Path | str | None) -> None:
        self.path = None if path is None else Path(path)
        self._text = ""
        self._lines: dict[KeyPath, int] | None = None

    def read(self, problems: list[Problem]) -> dict[str, Any]:
        """Typed values of the file; an empty tree when there is none."""
        if self.path is None:
            return {}
        try:
            self._text = self.path.read_text("utf-8")
            document = tomllib.loads(self._text)
        except OSError as error:
            problems.append(Problem("--config", f"cannot read the file: {error.strerror}", str(self.path)))
            return {}
        except UnicodeDecodeError:
            problems.append(Problem("--config", "the file is not UTF-8", str(self.path)))
            return {}
        except tomllib.TOMLDecodeError as error:
            problems.append(_syntax_problem(str(error), str(self.path), self._text))
            return {}
        found: list[Finding] = []
        for path, remedy in _NOT_IN_THE_FILE.items():
            if isinstance(table := document.get(str(path[0])), dict) and path[1] in table:
                del table[path[1]]
                found.append(Finding(path, "keys do not belong in this file", remedy))
        named = document.get("upstreams")
        for name, table in named.items() if isinstance(named, dict) else ():
            for key in _NAMED_KEYS if isinstance(table, dict) else ():
                if table.pop(key, None) is not None:
                    remedy = (
                        f"name a file of keys with upstreams.{name}.api_key_file, or a variable with api_key_variable"
                    )
                    found.append(Finding(("upstreams", name, key), "keys do not belong in this file", remedy))
        tree = decode_table(document, Settings, (), self.path.parent.absolute(), found)
        located = [Problem.at(self.origin(finding.path), finding.message, finding.suggestion) for finding in found]
        problems += sorted(located, key=lambda problem: problem.line or 0)
        return tree

    def origin(self, path: KeyPath) -> Origin:
        """Where a key, or else the innermost table around it, is written."""
        if self._lines is None:
            self._lines = key_lines(self._text)
        line = next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), None)
        return Origin(str(self.path), dotted(path), line)


def _syntax_problem(message: str, file: str, text: str) -> Problem:
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    line = len(text.splitlines()) if place is None or place[1] is None else int(place[1])
    return Problem("TOML", message[: place.start()] if place else message, file, line)


def _from_environment(environ: Mapping[str, str], problems: list[Problem]) -> Values:
    """Typed values of the variables; one with our prefix that is no setting is a problem."""
    values: Values = {}
    for name, text in environ.items():
        path = _VARIABLES.get(name)
        if path is not None:
            found: list[Finding] = []
            values[path] = decode_value(text, _LEAVES[path], path, Path.cwd(), found, strict=False)
            hint = _NO_SERVICE_LINKS if text.startswith(("tcp://", "udp://")) else None
            problems += [Problem(name, each.message, ENVIRONMENT, None, hint or each.suggestion) for each in found]
        elif name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            hint = _NO_SERVICE_LINKS if _SERVICE_LINK.search(name) else nearest(name, [*_VARIABLES, CONFIG_VARIABLE])
            problems.append(Problem(name, "unknown variable", ENVIRONMENT, None, hint))
    return values


def _from_options(overrides: Mapping[str, object], problems: list[Problem]) -> Values:
    """Typed values of the options that were given."""
    values: Values = {}
    for key, value in overrides.items():
        path: KeyPath = tuple(key.split("."))
        if value is None:
            continue
        found: list[Finding] = []
        values[path] = decode_value(value, _LEAVES[path], path, Path.cwd(), found)
        problems += [Problem(flag_of(path), each.message, COMMAND_LINE, None, each.suggestion) for each in found]
    return values


def _read_key_file(
    key_path: KeyPath, tree: dict[str, Any], origins: dict[KeyPath, Origin], file: _File, problems: list[Problem]
) -> None:
    """Put what `<name>_file` holds in the place of the secret beside it, unless the environment has one."""
    section, name = str(key_path[0]), str(key_path[1])
    table, name_of_file = tree.get(section, {}), f"{name}_file"
    if table.get(name) is not None or table.get(name_of_file) is None:
        return
    path: KeyPath = (section, name_of_file)
    origin = origins.get(path) or file.origin(path)
    try:
        key = table[name_of_file].read_text("ascii").strip()
    except OSError as error:
        problems.append(Problem.at(origin, f"cannot read the file: {error.strerror}"))
    except UnicodeDecodeError:
        problems.append(Problem.at(origin, "the file holds more than a key: it is not ASCII"))
    else:
        if not key:
            problems.append(Problem.at(origin, "the file is empty"))
        table[name] = Secret(key)
        origins.setdefault(key_path, origin)


def _read_keys_of_upstreams(
    tree: dict[str, Any], environ: Mapping[str, str], file: _File, problems: list[Problem]
) -> None:
    """Give each of several upstreams the keys that its variable holds, or else its file."""
    upstreams = tree.get("upstreams", {})
    for name, upstream in upstreams.items():
        text = environ.get(upstream.api_key_variable or "", "")
        if not text and upstream.api_key_file is not None:
            origin = file.origin(("upstreams", name, "api_key_file"))
            try:
                text = upstream.api_key_file.read_text("ascii")
            except OSError as error:
                problems.append(Problem.at(origin, f"cannot read the file: {error.strerror}"))
                continue
            except UnicodeDecodeError:
                problems.append(Problem.at(origin, "the file holds more than keys: it is not ASCII"))
                continue
            if not text.strip():
                problems.append(Problem.at(origin, "the file is empty"))
        keys = tuple(Secret(key) for key in text.split())
        upstreams[name] = msgspec.structs.replace(upstream, base_url=upstream.base_url.rstrip("/"), api_keys=keys)


def _built(kind: type[_Table], tree: dict[str, Any]) -> _Table:
    """The record of a tree whose values are of their types."""
    tables = {
        field.name: _built(field.type, tree[field.name])
        for field in msgspec.structs.fields(kind)
        if field.name in tree and table_type(field.type) is not None
    }
    return kind(**{**tree, **tables})


def _located(finding: Finding, origins: dict[KeyPath, Origin], file: _File) -> Problem:
    """A finding, with the place its value was written; a default has none."""
    origin = origins.get(finding.path)
    if origin is None and file.path is not None:
        origin = file.origin(finding.path)
    if origin is None:
        return Problem(dotted(finding.path), finding.message, suggestion=finding.suggestion)
    return Problem.at(origin, finding.message, finding.suggestion)
