"""Every metric of Tollgate: name, help, labels, buckets; only it and its siblings know the client library.

Labels are bounded: a team is one of the key store's, a model one of the price table's or `_other`, and none is ever a
key, a user, an address or a path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import islice

import prometheus_client  # noqa: TID251 - their one home
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: TID251 - same

from proxy.adapters.prometheus_ahead import Ahead
from proxy.adapters.prometheus_budgets import BudgetMetrics
from proxy.adapters.prometheus_http import HttpMetrics
from proxy.adapters.prometheus_queue import QueueMetrics
from proxy.adapters.prometheus_stores import StoreMetrics
from proxy.adapters.prometheus_streams import StreamMetrics
from proxy.adapters.prometheus_text import written
from proxy.adapters.prometheus_upstreams import UpstreamMetrics
from proxy.adapters.prometheus_values import Alike, Figure, Times, figure_of, keep_figures_here
from proxy.core.bucket import Dimension
from proxy.core.endpoints import PAGE
from proxy.core.errors import UpstreamFault
from proxy.core.event import Outcome
from proxy.core.record import CacheResult, RequestRecord

__all__ = ["Metrics"]

OTHER = "_other"
_PICO = 1_000_000_000_000
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 20, 60)
_USUAL_REASONS = {
    CacheResult.HIT: ("",),
    CacheResult.MISS: ("uri-miss", "no-cache", "max-age"),
    CacheResult.COLLAPSED: ("uri-miss", "max-age"),
    CacheResult.BYPASS: ("temperature", "no-store", "off"),
}
"""Those most teams will see. There are some twenty more, all names of ours for what a request asks for."""
_USUAL_STATUSES = tuple(f"status_{status}" for status in (401, 403, 408, 429, 500, 502, 503, 504))
_OUTCOMES = tuple(each for each in Outcome if each is not Outcome.INTERRUPTED)
"""Those of requests that were seen to their end."""
_TO_BE_LOOKED_INTO = frozenset({Outcome.UPSTREAM_ERROR, Outcome.UNAVAILABLE, Outcome.FAILED})
_CHILDREN = 50_000
"""Label sets of a metric that are kept at hand; others are looked up each time, slower and just as right."""
_TEAMS_AHEAD = 1_000
"""Teams whose counters are made before their first request: what a start and a scrape take has a bound."""
_TEAMS_AT_ONCE = 20
"""Made in one go: some fifteen counters each."""
_AT_ZERO = 1_000
"""Teams with a model that have a counter for whatever may happen; with more, each has those of what did happen."""


class Metrics(StoreMetrics):
    """Declares the metrics on a registry and counts finished requests into them."""

    def __init__(self, is_known_model: Callable[[str], bool], registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._is_known_model = is_known_model
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the package types it not
        keep_figures_here()
        super().__init__(self.registry)
        self._declare_money_and_traffic(self.registry)
        self._declare_latency(self.registry)
        self._declare_health(self.registry)
        self.budgets = BudgetMetrics(self.registry)
        self.upstreams = UpstreamMetrics(self.registry)
        self.queues = QueueMetrics(self.registry)
        self.streams = StreamMetrics(self.registry)
        self.http = HttpMetrics(self.registry)
        # A child looked up once costs a third of one looked up each time.
        self._request = lru_cache(_CHILDREN)(self.requests_total.labels)
        self._limited = lru_cache(_CHILDREN)(self.rate_limited_total.labels)
        self._shadow_limited = lru_cache(_CHILDREN)(self.shadow_limited_total.labels)
        self._cached = lru_cache(_CHILDREN)(self.cache_requests_total.labels)
        self._tokens = lru_cache(_CHILDREN)(self.tokens_total.labels)
        self._spend = lru_cache(_CHILDREN)(self.spend_usd_total.labels)
        self._saved = lru_cache(_CHILDREN)(self.saved_usd_total.labels)
        self._saved_tokens = lru_cache(_CHILDREN)(self.saved_tokens_total.labels)
        self._duration = lru_cache(_CHILDREN)(self.request_duration_seconds.labels)
        self._ttft = lru_cache(_CHILDREN)(self.time_to_first_token_seconds.labels)
        self._upstream = lru_cache(_CHILDREN)(self.upstream_duration_seconds.labels)
        self._ratio = lru_cache(_CHILDREN)(self.limit_used_ratio.labels)
        self._in_use = lru_cache(_CHILDREN)(self._create_at_zero)
        self._ahead = Ahead(self._in_use)
        self._room_at_zero = _AT_ZERO
        self._room_for_teams = _TEAMS_AHEAD
        self._due_teams: deque[str] = deque()
        self._in_flight = figure_of(self.in_flight_requests)
        self._overhead = Times(self.overhead_seconds)
        self._first_token = lru_cache(_CHILDREN)(lambda model: Times(self._ttft(model)))
        self._alike = lru_cache(_CHILDREN)(self._find_alike)

    def _declare_money_and_traffic(self, on: CollectorRegistry) -> None:
        model = ("team", "model")
        self.requests_total = Counter(
            "tollgate_requests_total", "Requests by how they ended.", (*model, "endpoint", "outcome"), registry=on
        )
        self.tokens_total = Counter(
            "tollgate_tokens_total",
            "Tokens used; cached_input is a part of input, reasoning a part of output.",
            (*model, "kind"),
            registry=on,
        )
        self.spend_usd_total = Counter(
            "tollgate_spend_usd_total", "Cost of dispatched requests in US dollars.", model, registry=on
        )
        self.saved_usd_total = Counter(
            "tollgate_saved_usd_total", "What answers from the cache would have cost.", model, registry=on
        )
        self.saved_tokens_total = Counter(
            "tollgate_saved_tokens_total",
            "Input and output tokens of answers from the cache; no part of tokens used.",
            model,
            registry=on,
        )
        self.rate_limited_total = Counter(
            "tollgate_rate_limited_total", "Requests refused by a limit.", ("team", "limit"), registry=on
        )
        self.shadow_limited_total = Counter(
            "tollgate_shadow_limited_total",
            "Requests that the tier a team is tried on would have refused.",
            ("team", "limit"),
            registry=on,
        )
        self.limit_used_ratio = Gauge(
            "tollgate_limit_used_ratio",
            "Used part of a team's bucket when its latest request was admitted.",
            ("team", "dimension"),
            multiprocess_mode="mostrecent",
            registry=on,
        )
        self.cache_requests_total = Counter(
            "tollgate_cache_requests_total",
            "Requests by what the cache had to say, and why where it was no hit.",
            ("team", "result", "reason"),
            registry=on,
        )

    def _declare_latency(self, on: CollectorRegistry) -> None:
        self.request_duration_seconds = Histogram(
            "tollgate_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ("endpoint", "cache"),
            buckets=_SECONDS,
            registry=on,
        )
        self.time_to_first_token_seconds = Histogram(
            "tollgate_time_to_first_token_seconds",
            "From the head of a request to the first bytes of its streamed answer.",
            ("model",),
            buckets=_SECONDS,
            registry=on,
        )
        self.upstream_duration_seconds = Histogram(
            "tollgate_upstream_duration_seconds",
            "Time a request spent waiting for upstream, all attempts together.",
            ("upstream",),
            buckets=_SECONDS,
            registry=on,
        )
        self.overhead_seconds = Histogram(
            "tollgate_overhead_seconds",
            "Time of a dispatched request that was not spent waiting for upstream.",
            buckets=_OVERHEAD_SECONDS,
            registry=on,
        )

    def _declare_health(self, on: CollectorRegistry) -> None:
        self.upstream_errors_total = Counter(
            "tollgate_upstream_errors_total",
            "Calls upstream that gave no usable answer.",
            ("upstream", "kind"),
            registry=on,
        )
        self.retries_total = Counter(
            "tollgate_retries_total", "Calls upstream that were made again.", ("upstream", "reason"), registry=on
        )
        self.in_flight_requests = Gauge(
            "tollgate_in_flight_requests", "Requests being served.", multiprocess_mode="livesum", registry=on
        )

    def prepare(self, teams: Iterable[str]) -> None:
        """Create what a new team's first event would otherwise create: a counter's first step would be invisible.

        A few teams' at once, the others' by `prepare_more`, and so many in all.
        """
        new = tuple(islice(teams, self._room_for_teams))
        self._room_for_teams -= len(new)
        self._ahead.teams_live(new)
        self._due_teams.extend(new)
        self._prepare_due_teams()

    def _prepare_due_teams(self) -> None:
        for _ in range(min(_TEAMS_AT_ONCE, len(self._due_teams))):
            team = self._due_teams.popleft()
            for result, reasons in _USUAL_REASONS.items():
                for reason in reasons:
                    self._cached(team, result.value, reason)
            for limit in Dimension:
                self._limited(team, limit.value)
            self._limited(team, "budget")
            for limit in (Dimension.REQUESTS, Dimension.TOKENS):
                self._shadow_limited(team, limit.value)

    def prepare_models(self, in_use: Iterable[tuple[str, str, str]]) -> None:
        """Create the children of (team, model, endpoint) that the ledger knows, at 0, before the next one counts."""
        for team, model, endpoint in in_use:
            self._in_use(team, self._model(model), endpoint)

    def prepare_unpriced(self, models: Iterable[str]) -> None:
        """Create the children of models that may have no price."""
        for model in (OTHER, *models):
            self.budgets.unpriced_requests_total.labels(model)

    def prepare_upstreams(self, names: Iterable[str]) -> None:
        """Create the children of every upstream there is, for all that usually goes wrong there."""
        for name in names:
            self._upstream(name)
            for kind in (*UpstreamFault, *_USUAL_STATUSES):
                self.upstream_errors_total.labels(name, kind)
            for reason in (UpstreamFault.UNREACHABLE, UpstreamFault.BROKEN, *_USUAL_STATUSES):
                self.retries_total.labels(name, reason)

    def prepare_more(self) -> None:
        """Create a few children of new teams, and of teams with models that others use; call it now and then."""
        self._prepare_due_teams()
        self._ahead.make_some()

    def started(self) -> None:
        """Count a request in."""
        self._in_flight.add(1)

    def finished(self, record: RequestRecord) -> None:
        """Count a request out. Views of pages are in the log alone: an open one asks every few seconds."""
        self._in_flight.add(-1)
        if record.endpoint == PAGE:
            return
        team, model = record.team, self._model(record.model)
        upstream = record.upstream if record.attempts else None
        alike = self._alike(team, model, record.endpoint, record.outcome, record.cache, record.cache_reason, upstream)
        seconds, ended_at = record.duration_ms / 1_000, (record.at_ms + record.duration_ms) / 1_000
        alike.duration.observe(seconds).tell(record.request_id, seconds, ended_at)
        alike.requests.add(1)
        if alike.telling is not None:
            alike.telling.tell(record.request_id, 1, ended_at)
        if alike.cached is not None:
            alike.cached.add(1)
        if record.request_use_ratio is not None:
            alike["requests"].put(record.request_use_ratio, ended_at)
        if record.token_use_ratio is not None:
            alike["tokens"].put(record.token_use_ratio, ended_at)
        if record.ttft_ms is not None:
            seconds = record.ttft_ms / 1_000
            self._first_token(model).observe(seconds).tell(record.request_id, seconds, ended_at)
        if alike.upstream is not None:
            alike.upstream.observe(record.upstream_ms / 1_000)
            self._overhead.observe(record.overhead_ms / 1_000)
            _count_usage(alike, record)
        elif record.outcome is Outcome.CACHED:
            alike["saved"].add(record.saved_pico_usd / _PICO)
            alike["saved_tokens"].add(record.usage.total_tokens)
        self._count_unusual(record, team, model)

    def retried(self, upstream: str, reason: str) -> None:
        """Count a call that is made again."""
        self.retries_total.labels(upstream, reason).inc()

    def upstream_failed(self, upstream: str, kind: str) -> None:
        """Count a call that gave no usable answer."""
        self.upstream_errors_total.labels(upstream, kind).inc()

    def store_failed(self, store: str, operation: str) -> None:
        """Count an operation a store did not carry out."""
        self.store_errors_total.labels(store, operation).inc()

    def cache_failed(self, operation: str, reason: str) -> None:
        """Count an operation of the cache in Redis that came to nothing."""
        self.cache_failures_total.labels(operation, reason).inc()

    def prepare_cache_failures(self, known: Iterable[tuple[str, str]]) -> None:
        """Create the children of (operation, reason) at 0: a counter's first step would be invisible."""
        for operation, reason in known:
            self.cache_failures_total.labels(operation, reason)

    def count_clock_steps(self, store: str, back: int, ahead: int) -> None:
        """Count how often a store's clock was set since the last call."""
        for direction, steps in (("back", back), ("ahead", ahead)):
            if steps:
                self.store_clock_steps_total.labels(store, direction).inc(steps)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Write all metrics in a form that `accept` takes, and say in which: call it off the loop."""
        return written(self.registry, accept)

    def _count_unusual(self, record: RequestRecord, team: str, model: str) -> None:
        if record.limited_dimension:
            figure_of(self._limited(team, record.limited_dimension)).add(1)
        if record.shadow_limited:
            figure_of(self._shadow_limited(team, record.shadow_limited)).add(1)
        if record.unpriced:
            self.budgets.unpriced_requests_total.labels(model).inc()
        if record.estimated and record.attempts:
            self.estimated_usage_total.labels(record.outcome.value).inc()

    def _find_alike(
        self,
        team: str,
        model: str,
        endpoint: str,
        outcome: Outcome,
        cache: CacheResult | None,
        reason: str,
        upstream: str | None,
    ) -> Alike:
        """Find the figures of requests with these labels; an `upstream` of None: none was called."""
        alike = Alike(partial(self._figure, team, model))
        alike.duration = Times(self._duration(endpoint, (cache or CacheResult.BYPASS).value))
        if team and model:
            self._in_use(team, model, endpoint)
        alike.requests = figure_of(self._request(team, model, endpoint, outcome.value))
        alike.telling = alike.requests if outcome in _TO_BE_LOOKED_INTO else None
        alike.cached = None if cache is None else figure_of(self._cached(team, cache.value, reason))
        alike.upstream = None if upstream is None else Times(self._upstream(upstream))
        return alike

    def _figure(self, team: str, model: str, name: str) -> Figure:
        match name:
            case "requests" | "tokens":
                return figure_of(self._ratio(team, name))
            case "spend":
                return figure_of(self._spend(team, model))
            case "saved":
                return figure_of(self._saved(team, model))
            case "saved_tokens":
                return figure_of(self._saved_tokens(team, model))
            case _:
                return figure_of(self._tokens(team, model, name))

    def _model(self, model: str) -> str:
        return model if not model or self._is_known_model(model) else OTHER

    def _create_at_zero(self, team: str, model: str, endpoint: str) -> None:
        self._ahead.used(model, endpoint)
        self._ttft(model)
        for result in CacheResult:
            self._duration(endpoint, result.value)
        if not self._room_at_zero:
            return
        self._room_at_zero -= 1
        for kind in ("input", "cached_input", "output", "reasoning"):
            self._tokens(team, model, kind)
        for outcome in _OUTCOMES:
            self._request(team, model, endpoint, outcome.value)
        self._spend(team, model)
        self._saved(team, model)
        self._saved_tokens(team, model)


def _count_usage(alike: Alike, record: RequestRecord) -> None:
    usage = record.usage
    if usage.input_tokens:
        alike["input"].add(usage.input_tokens)
    if usage.cached_input_tokens:
        alike["cached_input"].add(usage.cached_input_tokens)
    if usage.output_tokens:
        alike["output"].add(usage.output_tokens)
    if usage.reasoning_tokens:
        alike["reasoning"].add(usage.reasoning_tokens)
    if record.cost_pico_usd:
        alike["spend"].add(record.cost_pico_usd / _PICO)
