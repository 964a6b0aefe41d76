"""The figures of several processes, kept in files and added up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, multiprocess  # noqa: TID251 - a part of their one home
from prometheus_client.registry import Collector  # noqa: TID251 - same

from proxy.adapters.prometheus_text import written
from proxy.adapters.prometheus_values import keep_figures_in_files

__all__ = ["forget_process", "render_shared", "share_between_processes", "shared_figures"]

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


def share_between_processes(directory: Path, number: int) -> None:
    """Keep this process's figures in files of `directory`, for `render_shared` to add up; before any `Metrics`.

    `number` names the files. It is one no live process has, and a successor takes over what a dead one counted: the
    number of files is bounded by that of workers, and no counter goes back.
    """
    os.environ[_DIRECTORY] = str(directory)  # noqa: TID251 - prometheus_client takes it from nowhere else
    keep_figures_in_files(number)


def forget_process(directory: Path, number: int) -> None:
    """Drop the live gauges of a process that is dead: nothing is in flight there any more."""
    multiprocess.mark_process_dead(number, str(directory))  # type: ignore[no-untyped-call]  # the package types it not


def render_shared(directory: Path, accept: str = "") -> tuple[bytes, str]:
    """Write the figures of all processes as one, in a form that `accept` takes, and say in which."""
    registry = CollectorRegistry()
    registry.register(_Shared(directory))
    return written(registry, accept)


def shared_figures(directory: Path) -> Iterable[Metric]:
    """The figures of all processes, added up."""
    return _Shared(directory).collect()


class _Shared(Collector):
    """The figures in the files of a directory, added up."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = []
        for path in self._directory.glob("*.db"):
            # One that is being made is empty for a moment, one of a dead process may be gone: neither tells anything.
            with suppress(FileNotFoundError):
                if path.stat().st_size:
                    files.append(str(path))
        merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]  # as above
        return merged
