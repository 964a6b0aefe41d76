import ast
import inspect

import pytest

from proxy.pipeline import call, coalesce, line, pass_through

ORDERS = {
    line.travel: ["authenticate", "comes_as_form", "received", "interpret_form", "_travel_on", "receive", "interpret",
                  "_travel_on"],
    line._travel_on: ["look_up", "travel_together", "travel_apart", "admit", "decide_shadow", "settle_hit", "replay",
                      "call", "settle_broken"],
    pass_through.pass_through: ["authenticate", "EndpointClosed", "stream", "Asked", "admit", "decide_shadow",
                                "dispatch", "forward", "pass_as_it_is", "settle_broken"],
    call.call: ["dispatch", "forward", "pass_media", "relay", "let_go"],
    coalesce._admit: ["admit", "decide_shadow", "settle_broken"],
    coalesce._lead: ["claim", "wants_new", "partial", "_admit", "_let_go", "depart", "spawn", "_fly", "_listen"],
}  # fmt: skip


@pytest.mark.parametrize("function", ORDERS, ids=lambda function: function.__name__)
def test_the_stations_in_the_order_a_request_lives_in(function):
    (node,) = ast.parse(inspect.getsource(function)).body
    calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    # The inner one of two is called first.
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    names = [call.func.id if isinstance(call.func, ast.Name) else call.func.attr for call in calls]
    assert [name for name in names if name != "LookupError"] == ORDERS[function]
    assert node.end_lineno - node.lineno < 80
