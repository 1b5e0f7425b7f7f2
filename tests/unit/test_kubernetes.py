"""The manifests that we ship are what Kubernetes' published schemas allow, and name what we have."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kuasar import __version__
from kuasar.cli.ctl.main import main as kuasarctl
from kuasar.core.config import Config, parse
from kuasar.install.carry import HOME

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


def test_the_daemon_set_fits_together() -> None:
    documents = manifests(ETC / "kubernetes" / "node.yaml")
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    namespace = kinds["Namespace"]["metadata"]["name"]
    account = kinds["ServiceAccount"]["metadata"]
    assert {kinds[kind]["metadata"]["namespace"] for kind in ("ServiceAccount", "ConfigMap", "DaemonSet")} == {
        namespace
    }
    binding = kinds["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == kinds["ClusterRole"]["metadata"]["name"]
    assert [(each["name"], each["namespace"]) for each in binding["subjects"]] == [(account["name"], namespace)]
    assert kinds["ClusterRole"]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}]
    parse(tomllib.loads(kinds["ConfigMap"]["data"]["kuasar.toml"]))

    spec = kinds["DaemonSet"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == account["name"]
    (install,), (label,) = spec["initContainers"], spec["containers"]
    assert {each["image"] for each in (install, label)} == {f"localhost/kuasar/node:{__version__}"}
    home = f"{HOME}/{__version__}"
    assert install["command"] == [f"{home}/bin/python", "-m", "kuasar.install.carry"]
    assert label["command"][0] == f"{home}/bin/kuasarctl"
    context = kuasarctl.make_context("kuasarctl", label["command"][1:])
    command = kuasarctl.get_command(context, "label-node")
    assert command is not None
    assert command.make_context("label-node", [*label["command"][2:], "--node", "n1"]).params["every"] == 60
    assert spec["hostPID"] is True
    assert home in (ETC / "kubernetes" / "Containerfile").read_text()
    volumes = {each["name"] for each in spec["volumes"]}
    assert {each["name"] for each in install["volumeMounts"]} == volumes
    maps = [each["configMap"]["name"] for each in spec["volumes"] if "configMap" in each]
    assert maps == [kinds["ConfigMap"]["metadata"]["name"]]
