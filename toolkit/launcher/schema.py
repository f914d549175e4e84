"""The JSON schema of the graph file, so that an editor completes and checks it. Made of the types that read the file."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from toolkit.launcher.manifest import GraphFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"


COMMITTED = Path(__file__).with_name("graph.schema.json")


def main() -> None:
    COMMITTED.write_text(render_schema(), encoding="utf-8")


def render_schema() -> str:
    """The text of `graph.schema.json`."""
    schema = TypeAdapter(GraphFile).json_schema(schema_generator=_Generator)
    for holder in (schema, schema["$defs"]["Deployment"]):
        _add_spellings(holder["properties"])
    schema = {"$schema": DIALECT, "title": "A graph file of grpc-model-toolkit", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _add_spellings(properties: dict[str, Any]) -> None:
    """Those of `env` that `layers` understands."""
    env = properties["env"]
    item = {"name": {"type": "string"}, "value": {"type": "string"}}
    named = {"type": "object", "properties": item, "required": list(item), "additionalProperties": False}
    said = env.pop("description")
    both = {"anyOf": [env, {"type": "array", "items": named}]}
    properties["env"] = {"description": said, **both}
    properties["envs"] = {"description": "Another spelling of `env`.", **both}


class _Generator(GenerateJsonSchema):
    """Without what an editor has no use for, and with the docstring of every key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        if not isinstance(found.get("default"), str | int):
            found.pop("default", None)
        return found

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        found = super().dict_schema(schema)
        return {**found, "additionalProperties": False} if "patternProperties" in found else found

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        found = super().dataclass_schema(schema)
        found.pop("title", None)
        docs = _attribute_docs(schema["cls"])
        for name, value in found["properties"].items():
            if name in docs:
                value["description"] = docs[name]
        return found


def _attribute_docs(cls: type[Any]) -> dict[str, str]:
    """Key → the docstring below its attribute."""
    assert is_dataclass(cls)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            name = ast.unparse(field.target)
            found["class" if name == "service" else name] = " ".join(str(below.value.value).split())
    return found


if __name__ == "__main__":
    main()
