"""supervisord.conf made from kuasar.toml."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from kuasar.supervisor import render

TEMPLATE = Path(__file__).parents[3] / "etc/supervisord.conf"


def write(directory: Path, name: str = "k") -> Path:
    path = directory / "kuasar.toml"
    path.write_text(
        f'state_dir = "{directory}/{name}"\nlog_dir = "{directory}/l"\nlog_level = "warning"\n'
        f'[supervisor]\nsocket = "{directory}/{name}/sup.sock"\nlog_max_bytes = 12345\n'
    )
    return path


def run(config: Path, output: Path, template: Path = TEMPLATE) -> int:
    return render.main(["--config", str(config), "--template", str(template), "--output", str(output)])


def test_supervisord_understands_what_is_shipped(tmp_path: Path) -> None:
    output = tmp_path / "supervisord.conf"
    assert run(write(tmp_path, "100%"), output) == 0
    options = ServerOptions()
    options.realize(["-c", str(output)])
    assert [group.name for group in options.process_group_configs] == ["zygote", "keeper", "gateway", "reconciler"]
    zygote = options.process_group_configs[0].process_configs[0]
    assert zygote.command.endswith(f"-m kuasar.supervisor.zygote --config {tmp_path}/kuasar.toml --announce")
    assert (zygote.stdout_logfile, zygote.stdout_logfile_maxbytes) == (f"{tmp_path}/l/zygote.log", 12345)
    (server,) = options.server_configs
    assert (server["file"], server["chmod"]) == (f"{tmp_path}/100%/sup.sock", 0o600)
    assert ("kuasar", {"config": f"{tmp_path}/kuasar.toml"}) in [
        (name, extra) for name, _, extra in options.rpcinterface_factories
    ]


def test_the_directories_are_made_for_their_owner_only(tmp_path: Path) -> None:
    output = tmp_path / "supervisord.conf"
    assert run(write(tmp_path), output) == 0
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("k", "k/sandboxes", "l/sandboxes", output.name)
    }
    assert modes == {"k": 0o700, "k/sandboxes": 0o700, "l/sandboxes": 0o750, output.name: 0o600}


def test_an_open_state_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k").mkdir()
    os.chmod(tmp_path / "k", 0o755)
    assert run(write(tmp_path), tmp_path / "out") == 1
    assert "state_dir:" in (said := capsys.readouterr().err)
    assert "has mode 0755" in said


@pytest.mark.parametrize("text", ["x = ${nonsense}", "x = ${", "x = $"])
def test_a_wrong_template_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    template = tmp_path / "template"
    template.write_text(text)
    assert run(write(tmp_path), tmp_path / "out", template) == 1
    assert "unknown or malformed placeholder" in capsys.readouterr().err


def test_a_wrong_configuration_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "kuasar.toml"
    config.write_text("nonsense = 1\n")
    assert run(config, tmp_path / "out") == 1
    assert f"{config}: nonsense: unknown key" in capsys.readouterr().err
