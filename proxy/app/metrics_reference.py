"""The reference of metrics in Markdown, made of their declarations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from proxy.adapters.prometheus_declared import Declared, declared
from proxy.core.bucket import Dimension
from proxy.core.budget import Period
from proxy.core.errors import UpstreamFault
from proxy.core.event import Outcome
from proxy.core.record import CacheResult

__all__ = ["reference", "told"]


def _any_of(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


_LABELS: Mapping[str, str] = {
    "cache": _any_of(CacheResult) + ", as `result`",
    "dimension": "what is limited: " + _any_of((Dimension.REQUESTS, Dimension.TOKENS)),
    "direction": _any_of(("back", "ahead")),
    "endpoint": "the operation: `chat`, `text_completion`, `embeddings`, `responses`, `moderations`, `models`...; "
    "`_other` for a path that is not open; a team's page is in none of them",
    "event": "a fixed list: what became of a connection or a command",
    "key": "the place of a key in the settings of its upstream, from 1; never anything of the key",
    "kind": "of tokens `input`, `cached_input`, `output`, `reasoning`; of errors " + _any_of(UpstreamFault) + ", or "
    "`status_` with upstream's status",
    "limit": "what refused: " + _any_of(Dimension) + ", or `budget`",
    "model": "a model of the price table or of `models.extra`, `_other` for any else; empty where none could be read",
    "operation": "a fixed list: what was asked of the store",
    "outcome": _any_of(each for each in Outcome if each is not Outcome.INTERRUPTED),
    "period": _any_of(Period),
    "policy": "`limits.when_redis_is_away`",
    "queue": "`limits`: for limits to have room; `upstream`: for the pace of upstream",
    "reason": "a fixed list for each metric: why",
    "result": "of the cache " + _any_of(CacheResult) + "; of a warning `delivered`, `failed`, `lost`",
    "store": "`limiter`, `cache`, `keys`, `registry`, `ledger`, `spool`, `database`, `budget_warnings`, `tokenizer`",
    "team": "a team of the key store; empty where nobody was recognised",
    "upstream": "its name in the settings",
    "version": "of Tollgate",
}
"""What each label says, and what bounds it."""

_OPENTELEMETRY = (
    (
        "`gen_ai.client.token.usage`, by `gen_ai.token.type`",
        "`tollgate_tokens_total`, by `kind`: a counter, no histogram",
    ),
    ("`gen_ai.client.operation.duration`", "`tollgate_upstream_duration_seconds`: what a request waited for upstream"),
    (
        "`gen_ai.client.operation.time_to_first_chunk`",
        "`tollgate_time_to_first_token_seconds`, Tollgate's own time included",
    ),
    ("`gen_ai.server.request.duration`", "`tollgate_request_duration_seconds`"),
    ("`gen_ai.server.time_to_first_token`", "`tollgate_time_to_first_token_seconds`"),
    ("attribute `gen_ai.operation.name`", "label `endpoint`"),
    ("attribute `gen_ai.request.model`", "label `model`"),
    ("attribute `gen_ai.provider.name`", "label `upstream`, which is the operator's name for it"),
    (
        "attribute `gen_ai.token.type`",
        "label `kind`: `input`, `output`; `cached_input` and `reasoning` are parts of these",
    ),
    ("attribute `error.type`", "labels `outcome` of requests and `kind` of upstream's errors"),
)
"""Source: OpenTelemetry's semantic conventions for generative AI, in development."""


_HEAD = """\
# Metrics

`tollgate metrics` prints this page. Counters begin anew with a process: take `increase()` or `rate()` of them. What
was used and paid in the past is in the ledger (`tollgate usage`), and of this day and month in
`tollgate_ledger_spend_usd`.
"""

_EXEMPLARS = """
*workers*: what becomes of the figures of several workers of one machine. A scraper that accepts OpenMetrics is told
exemplars: the `request_id` of one request, to look for in the log, on durations, on times to the first token, and on
requests that ended as `upstream_error`, `unavailable` or `failed`. Several workers behind one `/metrics` tell none.

## Labels

None is ever a key, a user, an address or a path, and none has a value that a client has made up.
"""

_WORDS = """
## In OpenTelemetry's words

Its conventions for generative AI are in development, so their names of metrics are not used; their values are.
"""


def reference() -> str:
    """All of it: every metric, what its labels can be, and what OpenTelemetry calls these things."""
    metrics = declared()
    labels = sorted({label for metric in metrics for label in metric.labels})
    lines = (
        _HEAD,
        *_table(("metric", "type", "labels", "unit", "workers", "what it tells"), map(_row, metrics)),
        _EXEMPLARS,
        *_table(("label", "values"), ((f"`{label}`", _LABELS[label]) for label in labels)),
        _WORDS,
        *_table(("OpenTelemetry", "here"), _OPENTELEMETRY),
    )
    return "\n".join(lines) + "\n"


def told() -> list[dict[str, Any]]:
    """Every metric, for programs."""
    return [asdict(metric) for metric in declared()]


def _row(metric: Declared) -> tuple[str, ...]:
    labels = " ".join(f"`{label}`" for label in metric.labels)
    return f"`{metric.name}`", metric.kind, labels, metric.unit, metric.over_workers, metric.help


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
