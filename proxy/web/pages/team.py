"""A team's page: what it used, where its limits and budgets stand, and how to go on from here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Template

from proxy.core.bucket import Scope, Standing
from proxy.core.overview import Account, levels_of
from proxy.core.principal import Principal
from proxy.core.views.budgets import BudgetView
from proxy.web.pages.figures import BUDGET_HEADER, budget_rows, clock_time, count, gauge, table
from proxy.web.pages.html import Child, Html, el, join
from proxy.web.pages.layout import page, section
from proxy.web.pages.money import chart_of_days, lines, tiles

__all__ = ["SIGN_IN", "SIGN_OUT", "TEAM_BASE", "TeamView", "sign_in_page", "team_page"]

TEAM_BASE = "/tollgate"
SIGN_IN = f"{TEAM_BASE}/sign-in"
SIGN_OUT = f"{TEAM_BASE}/sign-out"
_NO_LEDGER = "The ledger does not answer; figures come back when it does."
_SHOWN_MODELS = 50
_A_MODEL = "gpt-4o-mini"
_PYTHON = Template("""\
import os

from openai import OpenAI

client = OpenAI(base_url=$url, api_key=os.environ["TEAM_KEY"])
answer = client.chat.completions.create(
    model=$model,
    messages=[{"role": "user", "content": "Say hello."}],
)
print(answer.choices[0].message.content)
""")
_NODE = Template("""\
import OpenAI from "openai";

const client = new OpenAI({ baseURL: $url, apiKey: process.env.TEAM_KEY });
const answer = await client.chat.completions.create({
  model: $model,
  messages: [{ role: "user", content: "Say hello." }],
});
console.log(answer.choices[0].message.content);
""")
_CURL = Template("""\
curl $url/chat/completions \\
  -H "Authorization: Bearer $$TEAM_KEY" \\
  -H "Content-Type: application/json" \\
  -d '$body'
""")


@dataclass(frozen=True, slots=True)
class TeamView:
    """What a team is shown, with a key of its own."""

    at_ms: int
    principal: Principal
    tier: str
    models: Sequence[str] | None
    """Those the key may use; None: all."""
    account: Account | None
    """None: the ledger does not answer."""
    standings: Sequence[tuple[Scope, Standing]]
    budgets: Sequence[BudgetView]
    key_budgets: Sequence[BudgetView]
    base_url: str | None


def team_page(view: TeamView) -> bytes:
    """Write the page."""
    team = view.principal.team.name
    parts = (_money(view.account), _limits(view), _budgets(view), _key(view), _use(view))
    return page(f"{team} – Tollgate", TEAM_BASE, _header(view), join(parts), live=True)  # noqa: RUF001 - a dash


def sign_in_page(said: str = "") -> bytes:
    """Write the page that asks for a key; `said`: what was wrong with the last one."""
    form = el(
        "form",
        el("p", said, class_="error", id="error", role="alert") if said else None,
        el("label", "Key of your team", for_="key"),
        el(
            "input",
            id="key",
            name="key",
            type="password",
            autocomplete="off",
            required=True,
            maxlength=512,
            spellcheck="false",
            aria_describedby="error about" if said else "about",
            aria_invalid="true" if said else None,
            autofocus=True,
        ),
        el("button", "Sign in", type="submit"),
        el(
            "p",
            "Any key of the team will do. The browser keeps no key, and the sign-in ends after an hour.",
            id="about",
        ),
        method="post",
        action=SIGN_IN,
        class_="sign-in",
    )
    return page("Sign in – Tollgate", TEAM_BASE, el("h1", "Sign in to Tollgate"), form, live=False)  # noqa: RUF001 - a dash


def _header(view: TeamView) -> Html:
    facts = (
        el("span", "as of ", clock_time(view.at_ms), " UTC"),
        el("span", f"tier {view.tier}"),
        el("span", f"key {view.principal.key.name}"),
    )
    out = el("form", el("button", "Sign out", type="submit"), method="post", action=SIGN_OUT)
    return join(
        (
            el("h1", view.principal.team.name),
            el("p", *facts, id="state", class_="facts", data_live=True),
            el("button", "Pause", id="pause", type="button", hidden=True, aria_pressed="false"),
            out,
            el("p", id="trouble", role="status"),
            el("noscript", el("a", "Look again", href=TEAM_BASE)),
        )
    )


def _money(account: Account | None) -> Html:
    if account is None:
        return section("money", "Spent", el("p", _NO_LEDGER, class_="empty"))
    behind = el(
        "p", "As the ledger has it, which is some seconds behind. Days and months are those of UTC.", class_="quiet"
    )
    models = lines("Models this month, dearest first", "Model", account.models, "Nothing was used this month.")
    return join(
        (
            section("money", "Spent", tiles(account), behind),
            chart_of_days(account, "days"),
            section("models", "By model", models),
        )
    )


def _limits(view: TeamView) -> Html:
    header = ("Limit of", "Requests", "Tokens", ">At one time")
    rows = [_limit(scope, standing, view.at_ms) for scope, standing in view.standings]
    return section("limits", "Limits", table("What is used of each limit at this moment", header, rows, ""))


def _limit(scope: Scope, standing: Standing, at_ms: int) -> Html:
    of, _, name = scope.name.partition(":")
    label = {"key": "this key", "model": f"model {name}"}.get(of, "the team")
    requests, tokens = levels_of(scope, standing, at_ms)
    none = el("span", "no limit", class_="quiet")
    return el(
        "tr",
        el("th", label, scope="row"),
        el("td", gauge(f"{label}, requests", requests)),
        el("td", gauge(f"{label}, tokens", tokens)),
        el("td", none if scope.max_parallel is None else count(scope.max_parallel), class_="n"),
    )


def _budgets(view: TeamView) -> Html:
    rows = [*budget_rows("the team", view.budgets), *budget_rows("this key", view.key_budgets)]
    held = table("Budgets of the team and of this key", ("Budget of", *BUDGET_HEADER), rows, "There is no budget.")
    return section("budgets", "Budgets", held)


def _key(view: TeamView) -> Html:
    key, ends = view.principal.key, view.principal.secret_ends_at_ms
    models = view.models
    shown = "all" if models is None else ", ".join(models[:_SHOWN_MODELS]) or "none"
    if models is not None and len(models) > _SHOWN_MODELS:
        shown += f", and {count(len(models) - _SHOWN_MODELS)} more"
    facts: list[tuple[str, Child]] = [
        ("Label", key.label or "none"),
        ("Id", el("code", key.kid)),
        ("Expires", _instant(key.expires_at_ms)),
        *([("This secret ends", _instant(ends))] if ends is not None else []),
        ("Models", shown),
        ("Cache", view.principal.team.cache_mode.value),
    ]
    pairs = [part for name, value in facts for part in (el("dt", name), el("dd", value))]
    return section("key", "This key", el("dl", *pairs, class_="pairs"))


def _instant(at_ms: int | None) -> Html | str:
    if at_ms is None:
        return "never"
    at = datetime.fromtimestamp(at_ms // 1_000, UTC)
    return el("time", f"{at:%Y-%m-%d %H:%M} UTC", datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}")


def _use(view: TeamView) -> Html:
    base_url = view.base_url or "http://ADDRESS/v1"
    model = _A_MODEL if view.models is None or _A_MODEL in view.models or not view.models else view.models[0]
    parts = [
        part
        for name, text in _snippets(base_url, model)
        for part in (el("h3", name), el("pre", el("code", text), tabindex=0, role="region", aria_label=name))
    ]
    told = el("p", "Put the key of your team in the variable TEAM_KEY; all else stays as it was.")
    return section("use", "How to use it", told, *parts)


def _snippets(base_url: str, model: str) -> tuple[tuple[str, str], ...]:
    url, name = json.dumps(base_url), json.dumps(model)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Say hello."}]})
    quoted = body.replace("'", "'\\''")
    return (
        ("Python", _PYTHON.substitute(url=url, model=name)),
        ("Node", _NODE.substitute(url=url, model=name)),
        ("curl", _CURL.substitute(url=base_url, body=quoted)),
    )
