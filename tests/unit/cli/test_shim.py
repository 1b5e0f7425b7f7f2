"""The shim's command line, as containerd calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kuasar.api.gen.containerd.types import introspection_pb2
from kuasar.cli.shim import parse
from kuasar.core.errors import InvalidArgument


def run(*argv: str, config: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": "/usr/bin:/bin"} | ({"KUASAR_CONFIG": str(config)} if config else {})
    command = [sys.executable, "-m", "kuasar.cli.shim", *argv]
    return subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)


def test_containerds_own_form() -> None:
    argv = [
        "-namespace",
        "k8s.io",
        "-address=/run/c.sock",
        "-publish-binary",
        "/usr/bin/containerd",
        "-id",
        "x",
        "start",
    ]
    invocation = parse(argv)
    assert invocation.action == "start"
    assert invocation.flags == {
        "namespace": "k8s.io",
        "address": "/run/c.sock",
        "publish-binary": "/usr/bin/containerd",
        "id": "x",
    }


@pytest.mark.parametrize("argv", [["-nonsense"], ["-id"]])
def test_bad_flags_are_named(argv: list[str]) -> None:
    with pytest.raises(InvalidArgument, match=argv[0]):
        parse(argv)


def test_start_prints_the_gateways_address(tmp_path: Path) -> None:
    config = tmp_path / "kuasar.toml"
    config.write_text('[gateway]\nsocket = "/run/elsewhere/g.sock"\n')
    done = run("-namespace", "default", "-id", "x", "start", config=config)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"version": 3, "address": "unix:///run/elsewhere/g.sock", "protocol": "grpc"}


def test_info_is_a_runtime_info() -> None:
    done = run("-info")
    assert done.returncode == 0, done.stderr
    assert introspection_pb2.RuntimeInfo.FromString(done.stdout).name == "io.containerd.kuasar.v2"


def test_delete_without_gateway_fails_and_says_so(tmp_path: Path) -> None:
    config = tmp_path / "kuasar.toml"
    config.write_text(f'[gateway]\nsocket = "{tmp_path}/none.sock"\n')
    done = run("-namespace", "default", "-id", "x", "delete", config=config)
    assert done.returncode == 1
    assert b"could not delete container x" in done.stderr


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [([], 1, b"an action is needed"), (["fly"], 1, b"unknown action 'fly'"), (["-x"], 2, b"unknown flag")],
)
def test_wrong_calls(argv: list[str], code: int, message: bytes) -> None:
    done = run(*argv)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
