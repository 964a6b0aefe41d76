import pytest

from proxy.simulator.faults import NO_FAULTS, Attempts, Faults
from proxy.simulator.refusal import Refusal


def faults_of(**headers):
    return Faults.of(
        [(f"X-Simulate-{name.replace('_', '-')}".encode(), value.encode()) for name, value in headers.items()]
    )


def test_headers_become_typed_fields():
    faults = faults_of(status="503", cut_after="0", reset="1", hang="0", retry_after="1", content_type="text/html")
    assert faults == Faults(status=503, cut_after=0, reset=True, retry_after="1", content_type="text/html")


def test_other_headers_mean_nothing():
    assert Faults.of([(b"X-Simulator", b"1"), (b"Accept", b"*/*")]) is NO_FAULTS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stauts", "503"),
        ("status", "200"),
        ("status", "abc"),
        ("delay_ms", "-1"),
        ("delay_ms", "3600001"),
        ("split", "0"),
        ("reset", "maybe"),
        ("times", "2"),
    ],
)
def test_what_means_nothing_is_refused(name, value):
    with pytest.raises(Refusal) as caught:
        faults_of(**{name: value})
    assert caught.value.status == 400


def test_attempts_are_counted_for_each_id():
    attempts = Attempts()
    first, second = faults_of(status="503", times="2", id="a"), faults_of(status="503", times="1", id="b")
    assert [attempts.still_faulty(first).status for _ in range(4)] == [503, 503, None, None]
    assert [attempts.still_faulty(second).status for _ in range(2)] == [503, None]
    attempts.clear()
    assert attempts.still_faulty(first).status == 503


def test_the_oldest_ids_are_forgotten():
    attempts = Attempts()
    for number in range(10_001):
        attempts.still_faulty(Faults(status=503, times=1, id=str(number)))
    assert attempts.still_faulty(Faults(status=503, times=1, id="0")).status == 503
    assert attempts.still_faulty(Faults(status=503, times=1, id="10000")).status is None


def test_without_times_a_fault_stays():
    attempts = Attempts()
    faults = Faults(status=503)
    assert all(attempts.still_faulty(faults) is faults for _ in range(3))


def test_options_disturb_whoever_asks_for_nothing_else():
    otherwise = Faults.named([("cut-after", "3")])
    assert Faults.of([(b"Accept", b"*/*")], otherwise).cut_after == 3
    own = Faults.of([(b"X-Simulate-No-Usage", b"1")], otherwise)
    assert (own.cut_after, own.no_usage) == (None, True)
    with pytest.raises(ValueError, match="nonsense"):
        Faults.named([("nonsense", "1")])
