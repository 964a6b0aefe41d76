"""Budgets from the command line: given, changed, taken away, and shown with what is spent."""

import json
import time

import pytest
from click.testing import CliRunner

from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.app import open_database
from proxy.cli import main
from proxy.core.event import Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.settings import load


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(main, [*arguments, "--data-dir", str(tmp_path / "data")], prog_name="tollgate")

    return invoke


@pytest.fixture
def told(run):
    def invoke(*arguments):
        result = run(*arguments, "--json")
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return json.loads(result.stdout)

    return invoke


@pytest.fixture
def spend(tmp_path):
    """Put what was spent just now into the ledger."""

    def keep(team, key_id, nano_usd):
        at_ms = time.time_ns() // 1_000_000
        event = UsageEvent(
            event_id=uuid7(at_ms, key_id.encode()[:10].ljust(10)),
            at_ms=at_ms,
            request_id="req_1",
            team=team,
            key_id=key_id,
            endpoint="chat",
            model="m",
            upstream="openai",
            status=200,
            outcome=Outcome.OK,
            cost_pico_usd=nano_usd * 1_000,
        )
        with open_database(load(overrides={"data_dir": str(tmp_path / "data")})) as engine:
            SqlLedgerStore(engine).take_over([event], "w/1", 1)

    return keep


def amounts(view):
    return [(each["period"], each["limit_usd"], each["warn_usd"]) for each in view["budgets"]]


def test_a_team_is_made_with_budgets_of_several_periods(told):
    made = told(
        *("teams", "add", "growth", "--budget", "500usd/month", "--warn-at", "400usd/month", "--budget", "$12.50/day")
    )
    assert amounts(made) == [("day", "12.50", None), ("month", "500.00", "400.00")]
    day, month = made["budgets"]
    assert (month["limit_nano_usd"], month["warn_nano_usd"]) == (500_000_000_000, 400_000_000_000)
    assert (day["spent_usd"], day["spent_nano_usd"]) == ("0.00", 0)
    assert (day["left_usd"], day["left_nano_usd"]) == ("12.50", 12_500_000_000)
    assert (len(day["span"]), len(month["span"])) == (10, 7)


def test_one_amount_is_changed_and_the_others_stay(told):
    told("teams", "add", "growth", "--budget", "500usd/month", "--warn-at", "400usd/month", "--budget", "20usd/day")
    assert amounts(told("teams", "set", "growth", "--budget", "600usd/month")) == [
        ("day", "20.00", None),
        ("month", "600.00", "400.00"),
    ]
    assert amounts(told("teams", "set", "growth", "--budget", "none/day")) == [("month", "600.00", "400.00")]
    assert amounts(told("teams", "set", "growth", "--budget", "none/month")) == [("month", None, "400.00")]
    assert amounts(told("teams", "set", "growth", "--warn-at", "none/month")) == []


def test_a_key_has_budgets_of_its_own(told, run):
    told("teams", "add", "growth")
    issued = told("keys", "issue", "--team", "growth", "--budget", "5usd/total", "--warn-at", "4usd/total")
    assert amounts(issued) == [("total", "5.00", "4.00")]
    assert amounts(told("keys", "set", issued["id"], "--budget", "6usd/total", "--budget", "1usd/day")) == [
        ("day", "1.00", None),
        ("total", "6.00", "4.00"),
    ]
    assert amounts(told("keys", "list")[0]) == amounts(told("keys", "set", issued["id"], "--label", "ci"))
    assert told("teams", "list")[0]["budgets"] == []
    refused = run("keys", "issue", "--team", "growth", "--budget", "none/day")
    assert refused.exit_code == 2


def test_what_is_spent_is_shown_to_each_owner(told, run, spend):
    told("teams", "add", "growth", "--budget", "500usd/month", "--warn-at", "400usd/month", "--warn-at", "9usd/total")
    told("teams", "add", "research", "--budget", "1usd/day")
    ids = [
        told("keys", "issue", "--team", "growth", "--budget", amount)["id"]
        for amount in ("5usd/day", "0.000002usd/day")
    ]
    spend("growth", ids[0], 1_500_000)
    spend("growth", ids[1], 2_001)
    growth, research = told("teams", "list")
    month, total = growth["budgets"]
    assert (month["spent_usd"], month["left_usd"]) == ("0.001502001", "499.998497999")
    assert (total["spent_nano_usd"], total["left_usd"]) == (1_502_001, None)
    assert research["budgets"][0]["spent_nano_usd"] == 0
    keys = {key["id"]: key["budgets"][0] for key in told("keys", "list")}
    assert [keys[kid]["spent_nano_usd"] for kid in ids] == [1_500_000, 2_001]
    assert keys[ids[1]]["left_nano_usd"] == 0
    table = run("teams", "list").stdout
    assert "0.001502001 of 500.00/month, warns at 400.00; 0.001502001/total, warns at 9.00" in table
    assert "0.0015 of 5.00/day" in run("keys", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--budget", "500"), 2, "not a budget such as"),
        (("--budget", "500usd/week"), 2, "not a budget such as"),
        (("--budget", "none/week"), 2, "day, month or total"),
        (("--budget", "9999999usd/month"), 2, "at most"),
        (("--budget", "1usd/day", "--budget", "2usd/day"), 2, "twice"),
        (("--budget", "1usd/day", "--warn-at", "2usd/day"), 1, "above its limit"),
        (("--warn-at", "0usd/day"), 1, "always reached"),
    ],
)
def test_what_is_no_budget_is_refused_and_nothing_is_changed(told, run, arguments, code, said):
    told("teams", "add", "growth")
    result = run("teams", "set", "growth", "--tier", "payg", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    (team,) = told("teams", "list")
    assert (team["tier"], team["budgets"]) == ("free", [])
