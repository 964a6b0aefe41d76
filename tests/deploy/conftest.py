"""What the tests of deployments stand in front of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.tollgate_process import Simulator, run_simulator


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulated upstream."""
    with run_simulator(tmp_path_factory.mktemp("simulator"), "sk-upstream-of-deployments") as running:
        yield running
