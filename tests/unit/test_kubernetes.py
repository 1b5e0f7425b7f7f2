"""The manifests that we ship are what Kubernetes' published schemas allow, and name what we have."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kuasar.core.config import Config

ETC = Path(__file__).parents[2] / "etc"
OLDEST, NEWEST = "1.28", kubernetes_validate.latest_version()
"""What is looked at of the versions that people run."""


def manifests(path: Path) -> list[dict[str, Any]]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("path", sorted((ETC / "kubernetes").glob("*.yaml")), ids=lambda path: path.name)
def test_they_are_valid(path: Path, version: str) -> None:
    documents = manifests(path)
    assert documents
    for document in documents:
        assert version.startswith(kubernetes_validate.validate(document, version, strict=True))


def test_what_is_wrong_is_seen() -> None:
    (first, *_) = manifests(ETC / "kubernetes" / "runtimeclasses.yaml")
    for wrong in ({**first, "handlr": "x"}, {**first, "overhead": {"podFixed": ["10Mi"]}}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_every_handler_of_the_drop_in_has_a_class() -> None:
    classes = manifests(ETC / "kubernetes" / "runtimeclasses.yaml")
    handlers = {each["handler"] for each in classes}
    drop_in = tomllib.loads((ETC / "containerd" / "kuasar.toml").read_text())
    assert handlers == set(drop_in["proxy_plugins"])
    assert handlers == set(Config().sandboxers)
    for each in classes:
        assert each["metadata"]["name"] == each["handler"]
        assert each["scheduling"]["nodeSelector"] == {f"kuasar.io/{each['handler'].removeprefix('kuasar-')}": "true"}
