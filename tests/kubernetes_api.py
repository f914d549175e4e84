"""As much of the API server of Kubernetes as `kubectl --dry-run=client` asks: which kinds there are, and their schemas.

The kinds and the schemas are those that kubernetes-validate ships, made from Kubernetes' own OpenAPI. It stores nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

Schema = Mapping[str, Any]
KINDS = "x-kubernetes-group-version-kind"
JSON = "application/json"
PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    group: str
    version: str
    name: str

    @property
    def plural(self) -> str:
        """As in addresses; Kubernetes makes its own by the same rule."""
        name = self.name.lower()
        if name.endswith("y"):
            return f"{name[:-1]}ies"
        return name if name == "endpoints" else f"{name}es" if name.endswith("s") else f"{name}s"


@contextmanager
def serve(version: str, others: Iterable[Kind] = ()) -> Iterator[str]:
    """The URL of a server of Kubernetes `version`, 1.34 say, that knows `others` too, as a cluster does that has their CRDs."""
    answers = _answers(version, others)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            kind, body = found or (JSON, _NOT_FOUND)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _answers(version: str, others: Iterable[Kind]) -> dict[str, tuple[str, bytes]]:
    """Path → its content type and what is there."""
    folder = files("kubernetes_validate") / f"kubernetes-json-schema/v{version}.0-local"
    schemas: dict[str, Schema] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    kinds = sorted({*_kinds(schemas), *others})
    versions = sorted({(each.group, each.version) for each in kinds})
    found: dict[str, Any] = {
        "/version": {"major": "1", "minor": version.partition(".")[2], "gitVersion": f"v{version}.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [*_groups(versions)]},
    }
    for group, name in versions:
        path = f"/apis/{group}/{name}" if group else f"/api/{name}"
        found[path] = _resources(group, name, [each for each in kinds if (each.group, each.version) == (group, name)])
    plain = {path: (JSON, json.dumps(what).encode()) for path, what in found.items()}
    return {**plain, "/openapi/v2": (PROTOBUF, _document(schemas))}


def _kinds(schemas: Mapping[str, Schema]) -> Iterator[Kind]:
    """What can be created: an object with a name, and not a list of them."""
    for schema in schemas.values():
        of_its_own = len(schema.get(KINDS, ())) == 1 and not schema[KINDS][0]["kind"].endswith("List")
        if of_its_own and "metadata" in schema["properties"]:
            (kind,) = schema[KINDS]
            yield Kind(kind["group"], kind["version"], kind["kind"])


def _groups(versions: Iterable[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
    for group in sorted({group for group, _ in versions if group}):
        those = [{"groupVersion": f"{group}/{name}", "version": name} for each, name in versions if each == group]
        yield {"name": group, "versions": those, "preferredVersion": those[0]}


def _resources(group: str, version: str, kinds: Iterable[Kind]) -> Mapping[str, Any]:
    """Each in a namespace: what we export is, and the schemas do not say."""
    verbs = ["create", "get", "list", "patch", "update"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": [
            {"name": each.plural, "singularName": "", "namespaced": True, "kind": each.name, "verbs": verbs}
            for each in kinds
        ],
    }


_NOT_FOUND = json.dumps(
    {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": HTTPStatus.NOT_FOUND}
).encode()


# OpenAPI 2 as protobuf, the one form that every kubectl reads; the fields are those of OpenAPIv2.proto of google/gnostic.


def _document(schemas: Mapping[str, Schema]) -> bytes:
    info = _field(1, "Kubernetes") + _field(2, "unversioned")
    definitions = b"".join(_field(1, _named(name, _schema(schema))) for name, schema in schemas.items())
    return _field(1, "2.0") + _field(2, info) + _field(8, b"") + _field(9, definitions)


def _schema(schema: Schema) -> bytes:
    if "$ref" in schema:
        return _field(1, schema["$ref"].replace("#/$defs/", "#/definitions/"))
    said = [_field(2, schema["format"])] if "format" in schema else []
    said += [_field(19, name) for name in schema.get("required", ())]
    if "additionalProperties" in schema:
        said.append(_field(21, _field(1, _schema(schema["additionalProperties"]))))
    if kind := _type(schema):
        said.append(_field(22, _field(1, kind)))
    if "items" in schema:
        said.append(_field(23, _field(1, _schema(schema["items"]))))
    if "properties" in schema:
        each = (_field(1, _named(name, _schema(one))) for name, one in schema["properties"].items())
        said.append(_field(25, b"".join(each)))
    if KINDS in schema:
        said.append(_field(31, _named(KINDS, _field(2, json.dumps(schema[KINDS])))))
    return b"".join(said)


def _type(schema: Schema) -> str:
    """OpenAPI 2 knows one; what Kubernetes takes as text or as a number is text there."""
    if "oneOf" in schema:
        return "string"
    said = schema.get("type", "")
    return said if isinstance(said, str) else next(each for each in said if each != "null")


def _named(name: str, value: bytes) -> bytes:
    return _field(1, name) + _field(2, value)


def _field(number: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)
