import pytest

from proxy.simulator.schema import instance


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "text"),
        ({"type": ["integer", "null"]}, 1),
        ({"type": "number"}, 1.5),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({}, None),
        ({"enum": ["b", "a"], "type": "string"}, "b"),
        ({"const": {"a": [1, None]}}, {"a": [1, None]}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
        ({"type": "array", "items": {"type": "string"}}, []),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, ["text", "text"]),
        ({"type": "object"}, {}),
        ({"properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}}}}, {"a": {"b": "text"}}),
        ({"properties": {"a": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {"type": "integer"}}}, {"a": 1}),
        ({"$ref": "#/$defs/gone"}, None),
    ],
)
def test_the_smallest_value_of(schema, value):
    assert instance(schema) == value


def test_a_schema_that_contains_itself_ends():
    value, depth = instance({"properties": {"next": {"$ref": "#"}}}), 0
    while value is not None:
        value, depth = value["next"], depth + 1
    assert 0 < depth < 20
