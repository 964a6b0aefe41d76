import ast
import inspect

from proxy.pipeline import line

ORDER = ["authenticate", "receive", "interpret", "look_up", "admit", "decide_shadow", "settle_hit", "replay",
         "dispatch", "forward", "relay", "settle_broken"]  # fmt: skip


def test_the_stations_in_the_order_a_request_lives_in():
    (function,) = [node for node in ast.parse(inspect.getsource(line)).body if isinstance(node, ast.AsyncFunctionDef)]
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    names = [call.func.id if isinstance(call.func, ast.Name) else call.func.attr for call in calls]
    assert names == ORDER
    assert function.end_lineno - function.lineno < 80
