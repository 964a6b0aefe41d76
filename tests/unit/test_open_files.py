import resource
import subprocess
import sys

import pytest

from proxy.app.open_files import connections_that_fit

LIFT = """
import resource
from proxy.app.listen import bounds_of
from proxy.app.open_files import lift_open_files
from proxy.settings import ServerSettings
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(lift_open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], bounds_of(ServerSettings()).max_connections,
      bounds_of(ServerSettings(max_connections=7)).max_connections)
"""


@pytest.mark.parametrize(("soft", "hard", "cap"), [(512, 1_024, 384), (1_024, 1_024, 384), (300, 300, 22)])
def test_what_the_system_allows_is_taken_and_connections_fit_into_it(soft, hard, cap):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 1_024
    done = subprocess.run(
        (sys.executable, "-c", LIFT.format(soft=soft, hard=hard)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(hard), str(hard), str(cap), "7"]


def test_there_is_always_room_for_one():
    assert connections_that_fit(10) == 1
