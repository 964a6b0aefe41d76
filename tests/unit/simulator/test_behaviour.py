import pytest

from proxy.simulator import Behaviour


def test_the_key_is_not_shown():
    assert "sk-secret" not in repr(Behaviour(api_key="sk-secret"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", -1),
        ("ttft_ms", float("nan")),
        ("chunk_ms", 3_600_001),
        ("tokens", -1),
        ("error_rate", 1.01),
        ("error_status", 200),
        ("requests_per_minute", 0),
        ("tokens_per_minute", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Behaviour(**{name: value})
