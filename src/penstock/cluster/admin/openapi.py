"""The OpenAPI 3.1 document of the admin listener, from its table of routes and the types they take and give.

In: routes; out: the document as JSON values.  Nothing is written by hand, so nothing can differ from the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_REFERENCE = "#/components/schemas/{name}"
_PROBLEM = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def document(version: str, routes: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """``routes``: (method, path) to what ``app.AdminRoute`` says."""
    kinds = [kind for route in routes.values() for kind in (route.takes, route.gives) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    by_kind = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), route in routes.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, route, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock's admin listener", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, route: Any, schemas: Mapping[str, Any]) -> dict[str, Any]:
    problem = {"description": "What went wrong.", "content": _json({"$ref": _REFERENCE.format(name="Problem")})}
    answer: dict[str, Any] = {"description": route.words}
    if route.gives is not None:
        answer["content"] = _json(schemas[repr(route.gives)])
    operation: dict[str, Any] = {
        "summary": route.words,
        "responses": {str(route.status): answer, "default": problem},
        "security": [] if route.role is None else [{"key": []}],
    }
    if "{name}" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if route.takes is not None:
        operation["requestBody"] = {"required": True, "content": _json(schemas[repr(route.takes)])}
    return operation


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
