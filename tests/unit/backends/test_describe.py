"""Which engines can be used here, asked of small programs that behave as engines do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kuasar.backends import describe


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engines: str, seconds: float = 30
) -> dict[str, dict[str, object]]:
    config = tmp_path / "kuasar.toml"
    config.write_text(f'cache_dir = "{tmp_path}/cache"\nsandboxers = {{}}\n{engines}')
    assert describe.main(["--config", str(config), "--seconds", str(seconds)]) == 0
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)}


def test_usable_and_the_exact_reason_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = program(tmp_path / "good", "echo runc version 9.8.7")
    broken = program(tmp_path / "broken", "echo cannot load libseccomp.so.2; exit 127")
    mute = program(tmp_path / "mute", "echo hello")
    (tmp_path / "plain").write_text("")
    engines = described(
        tmp_path,
        capsys,
        f'[engines.good]\nkind = "runc"\nbinary = "{good}"\n[engines.broken]\nkind = "gvisor"\nbinary = "{broken}"\n'
        f'[engines.mute]\nkind = "runc"\nbinary = "{mute}"\n'
        f'[engines.plain]\nkind = "runc"\nbinary = "{tmp_path}/plain"\n'
        f'[engines.qemu]\nbinary = "no-such-qemu"\n[engines.edge]\nkind = "wasmedge"\nbinary = "{good}"\n'
        "[engines.wasmtime]\n",
    )
    assert (engines["good"]["usable"], engines["good"]["version"], engines["good"]["binary"]) == (True, "9.8.7", good)
    assert "exec" in str(engines["good"]["capabilities"])
    assert engines["wasmtime"]["usable"], engines["wasmtime"]
    for name, reason in {
        "broken": "--version exited with 127: cannot load libseccomp.so.2",
        "mute": "does not say its version, but 'hello'",
        "plain": "plain cannot be executed; name it with `binary`",
        "qemu": "QEMU is not there: no-such-qemu cannot be found",
        "edge": "is no 64-bit program (a script?)",
    }.items():
        assert not engines[name]["usable"]
        assert reason in str(engines[name]["reason"])


def test_an_engine_that_hangs_keeps_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hangs = program(tmp_path / "hangs", "exec sleep 1000")
    engines = described(tmp_path, capsys, f'[engines.hangs]\nkind = "runc"\nbinary = "{hangs}"\n', seconds=0.3)
    assert "did not finish in time" in str(engines["hangs"]["reason"])


def test_a_broken_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kuasar.toml").write_text("nonsense = 1\n")
    assert describe.main(["--config", str(tmp_path / "kuasar.toml")]) == 2
    assert "nonsense" in capsys.readouterr().err
