"""How metrics are written down: in Prometheus' text format, or in OpenMetrics, which has room for exemplars."""

from __future__ import annotations

import prometheus_client  # noqa: TID251 - a part of their one home
from prometheus_client import CollectorRegistry  # noqa: TID251 - same
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: TID251 - same

__all__ = ["written"]

_OPEN_METRICS = "application/openmetrics-text"
_VERSION = "1.0.0"


def written(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Everything in the registry, and the content type of that: OpenMetrics 1.0 for whoever names it in `Accept`.

    Takes milliseconds with many children: call it off the loop.
    """
    if _OPEN_METRICS in accept.lower():
        text: bytes = openmetrics.generate_latest(registry, version=_VERSION)  # type: ignore[no-untyped-call]  # the package types it not
        return text, f"{_OPEN_METRICS}; version={_VERSION}; charset=utf-8"
    return prometheus_client.generate_latest(registry), prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
