"""Which labels a node has, and how they get there: against a stand-in for Kubernetes' API server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kuasar.cli.ctl.commands import label_node
from kuasar.cli.ctl.main import main
from kuasar.core.errors import (
    BackendFailed,
    InvalidArgument,
    KuasarError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from kuasar.install.kubernetes import Api
from kuasar.install.labels import changes, in_words, labels_of
from tests.standins.kubernetes_api import HAS_OPENSSL, ApiServer

OPENSSL = pytest.mark.skipif(
    not HAS_OPENSSL, reason="openssl, which makes the stand-in's certificate, is not installed"
)
THEIRS = {"kubernetes.io/hostname": "n1", "zone": ""}
ENGINES = {
    "engines": [
        {"name": "runc", "usable": True, "sandboxers": ["kuasar-runc"]},
        {"name": "qemu", "usable": True, "sandboxers": ["kuasar-qemu", "big"]},
        {"name": "gvisor", "usable": False, "sandboxers": ["kuasar-gvisor"]},
    ]
}


def test_labels_name_the_runtimes_that_can_be_used() -> None:
    good = {"kuasar.io/big": "true", "kuasar.io/qemu": "true", "kuasar.io/runc": "true"}
    assert labels_of({"fail": 0}, ENGINES) == good
    assert labels_of({"fail": 1}, ENGINES) == {}


@pytest.mark.parametrize(("doctor", "engines"), [({}, ENGINES), (None, ENGINES), ({"fail": 0}, {"engines": [{}]})])
def test_other_data_is_refused(doctor: Any, engines: Any) -> None:
    with pytest.raises(InvalidArgument, match="not what kuasarctl's"):
        labels_of(doctor, engines)


def test_only_ours_change() -> None:
    there = {**THEIRS, "kuasar.io/gvisor": "true", "kuasar.io/runc": "true", "kuasar.io/qemu": "maybe"}
    wanted = {"kuasar.io/runc": "true", "kuasar.io/qemu": "true"}
    difference = changes(there, wanted)
    assert difference == {"kuasar.io/gvisor": None, "kuasar.io/qemu": "true"}
    assert in_words(difference) == ["kuasar.io/gvisor-", "kuasar.io/qemu=true"]
    assert changes({**THEIRS, **wanted}, wanted) == {}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    directory = tmp_path / "account"
    directory.mkdir()
    made = ApiServer(directory)
    made.nodes["n1"] = {**THEIRS, "kuasar.io/gvisor": "true"}
    yield made
    made.close()


def api(server: ApiServer) -> Api:
    return Api("127.0.0.1", server.port, str(server.account))


@OPENSSL
def test_labels_are_read_and_changed(server: ApiServer) -> None:
    node = api(server)
    assert node.labels("n1") == {**THEIRS, "kuasar.io/gvisor": "true"}
    node.change_labels("n1", {"kuasar.io/gvisor": None, "kuasar.io/runc": "true"})
    assert server.nodes["n1"] == {**THEIRS, "kuasar.io/runc": "true"}
    assert server.calls == [("GET", "/api/v1/nodes/n1"), ("PATCH", "/api/v1/nodes/n1")]
    assert server.mistakes == []
    server.token = "token-2"
    (server.account / "token").write_text("token-2")
    node.labels("n1")


@OPENSSL
def test_refusals_say_why(server: ApiServer) -> None:
    node = api(server)
    expected: list[tuple[str, type[KuasarError], str]] = [
        ("n2", NotFound, 'nodes "n2" not found'),
        ("../x", InvalidArgument, "is not the name of a node"),
    ]
    for name, kind, words in expected:
        with pytest.raises(kind, match=words):
            node.labels(name)
    server.may = {"get"}
    with pytest.raises(PermissionDenied, match=r"403: .* cannot patch"):
        node.change_labels("n1", {"a": "b"})
    (server.account / "token").write_text("another")
    with pytest.raises(PermissionDenied, match="401: Unauthorized"):
        node.labels("n1")
    (server.account / "token").unlink()
    with pytest.raises(PermissionDenied, match="token cannot be read"):
        node.labels("n1")


@OPENSSL
@pytest.mark.parametrize(
    ("code", "raw", "kind"),
    [
        (503, b"busy", Unavailable),
        (429, b"{}", Unavailable),
        (409, b'{"message": "conflict"}', Unavailable),
        (302, b"", BackendFailed),
        (200, b"<html>", BackendFailed),
        (200, b"[]", BackendFailed),
        (200, b'{"metadata": {"labels": []}}', BackendFailed),
    ],
)
def test_odd_answers(server: ApiServer, code: int, raw: bytes, kind: type[KuasarError]) -> None:
    server.broken = (code, raw)
    with pytest.raises(kind):
        api(server).labels("n1")


@OPENSSL
def test_nobody_else_is_trusted(server: ApiServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    impostor = ApiServer(other)
    try:
        with pytest.raises(Unavailable, match="certificate verify failed"):
            Api("127.0.0.1", impostor.port, str(server.account)).labels("n1")
        assert impostor.calls == []
    finally:
        impostor.close()
    with pytest.raises(Unavailable, match="refused"):
        Api("127.0.0.1", impostor.port, str(server.account)).labels("n1")


def test_outside_of_a_pod() -> None:
    with pytest.raises(InvalidArgument, match="this is no pod"):
        Api.of_pod({})
    assert Api.of_pod({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}) == Api("fd00::1", 6443)


def label(server: ApiServer, script: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    """The command, which asks ``script`` in the place of the host's kuasarctl."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setattr(label_node, "ON_HOST", (sys.executable, str(script)))
    argv = ["label-node", "--host", "--node", "n1", "--account", str(server.account), *options]
    return CliRunner().invoke(main, argv)


@OPENSSL
def test_the_command(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "kuasarctl"
    script.write_text(
        f"import json, sys\nassert sys.argv[2:] == ['--json']\n"
        f"print(json.dumps({{'doctor': {{'fail': 0}}, 'engines': json.loads({json.dumps(ENGINES)!r})}}[sys.argv[1]]))\n"
    )
    said = ["node n1: kuasar.io/gvisor-"] + [f"node n1: kuasar.io/{name}=true" for name in ("big", "qemu", "runc")]
    before = dict(server.nodes["n1"])
    done = label(server, script, monkeypatch, "--dry-run")
    assert (done.exit_code, done.output.splitlines(), server.nodes["n1"]) == (0, said, before)
    assert label(server, script, monkeypatch).output.splitlines() == said
    assert server.nodes["n1"] == {**THEIRS, **labels_of({"fail": 0}, ENGINES)}
    calls = len(server.calls)
    assert label(server, script, monkeypatch).output == ""
    assert server.calls[calls:] == [("GET", "/api/v1/nodes/n1")], "nothing to change"
    answer = json.loads(label(server, script, monkeypatch, "--json").stdout)
    assert answer == {"node": "n1", "dry_run": False, "changes": {}}
    server.broken = (503, b"later")
    done = label(server, script, monkeypatch)
    assert (done.exit_code, "503: later" in done.output) == (1, True)
    script.write_text("raise SystemExit('no such command')\n")
    done = label(server, script, monkeypatch)
    assert (done.exit_code, "kuasarctl doctor: no such command" in done.output) == (1, True)
    assert server.mistakes == []
