"""The vendors' published API descriptions (OpenAPI), where the machine has them: ``KUASAR_VENDOR_SPECS`` names the
folder. What they do not list is refused, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

VARIABLE = "KUASAR_VENDOR_SPECS"


def require_spec(name: str) -> Any:
    """The description ``<name>.yaml``; skips the test, with the reason, where there is none."""
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        pytest.skip(f"{VARIABLE} is not set: there is no vendor's description to check requests against")
    return yaml.safe_load((Path(folder) / f"{name}.yaml").read_text(encoding="utf-8"))


def validate(spec: Any, endpoint: str, body: Any) -> None:
    """Raises jsonschema's ValidationError unless ``body`` is what ``PUT /<endpoint>`` takes."""
    operation = spec["paths"][f"/{endpoint}"]["put"]
    if "requestBody" not in operation:
        assert body is None, f"{endpoint} takes no body"
        return
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    components = {name: _closed(each) for name, each in spec["components"]["schemas"].items()}
    jsonschema.Draft4Validator({**schema, "components": {"schemas": components}}).validate(body)


def validate_swagger(spec: Any, method: str, endpoint: str, body: Any) -> None:
    """As :func:`validate`, for a description of the older form (Swagger 2.0) and any method."""
    (path,) = [path for path in spec["paths"] if _matches(path, f"/{endpoint}")]
    parameters = spec["paths"][path][method.lower()].get("parameters", [])
    (schema,) = [parameter["schema"] for parameter in parameters if parameter["in"] == "body"]
    definitions = {name: _closed(each) for name, each in spec["definitions"].items()}
    jsonschema.Draft4Validator({**schema, "definitions": definitions}).validate(body)


def _matches(path: str, endpoint: str) -> bool:
    """Whether a path with parameters (``/drives/{drive_id}``) stands for ``endpoint``."""
    wanted, given = path.split("/"), endpoint.split("/")
    return len(wanted) == len(given) and all(
        part == each or part.startswith("{") for part, each in zip(wanted, given, strict=True)
    )


def _closed(schema: Any) -> Any:
    """Without room for fields that it does not name."""
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        return {**schema, "additionalProperties": False}
    return schema
