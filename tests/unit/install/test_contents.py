"""What an installation puts onto a node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kuasar.core import shipped
from kuasar.core.config import Config, ConfigError, parse
from kuasar.core.errors import InvalidArgument
from kuasar.install.contents import CONFIG, DROP_IN, UNIT, contents, effective_config
from kuasar.install.drop_in import render
from kuasar.install.files import file
from kuasar.install.record import Record

CHECKOUT = Path(__file__).parents[3]


def test_the_package_carries_the_checkouts_files() -> None:
    ours = {str(path.relative_to(CHECKOUT / "etc")) for path in (CHECKOUT / "etc").rglob("*") if path.is_file()}
    theirs = {
        os.path.relpath(os.path.join(directory, name), shipped.DIRECTORY)
        for directory, _, names in os.walk(shipped.DIRECTORY)
        for name in names
    }
    assert ours == theirs
    assert shipped.shipped("kuasar.toml") == (CHECKOUT / "etc" / "kuasar.toml").read_text()


@pytest.mark.parametrize("version", [2, 3])
def test_the_drop_in_says_what_the_shipped_one_says(version: int) -> None:
    made = tomllib.loads(render(Config(), version))
    like = tomllib.loads(shipped.shipped("containerd/kuasar.toml"))
    assert made["version"] == version
    assert made["proxy_plugins"] == like["proxy_plugins"]
    plugin = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}[version]
    assert list(made["plugins"]) == [plugin]
    assert made["plugins"][plugin] == like["plugins"]["io.containerd.cri.v1.runtime"]


def test_the_drop_in_follows_the_configuration() -> None:
    config = parse(
        {
            "gateway": {"socket": "/run/x/g.sock"},
            "sandboxers": {"big": {"engine": "large"}, "kuasar-runc": {"engine": "runc"}},
            "engines": {"large": {"kind": "qemu"}, "runc": {}},
        },
        "/x/kuasar.toml",
    )
    made = tomllib.loads(render(config, 3))
    assert made["proxy_plugins"] == {
        name: {"type": "sandbox", "address": "/run/x/g.sock"} for name in ("big", "kuasar-runc")
    }
    runtimes = made["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert runtimes["big"] == {
        "runtime_type": "io.containerd.kuasar.v2",
        "sandboxer": "big",
        "privileged_without_host_devices": True,
    }


def test_where_everything_goes(tmp_path: Path) -> None:
    config, effective = effective_config(str(tmp_path), Record())
    assert effective.path == CONFIG
    found = contents(config, "the drop-in", "rke2-containerd.service")
    assert found[CONFIG] == config
    assert found[DROP_IN] == file(b"the drop-in")
    links = {path: os.fsdecode(each.content) for path, each in found.items() if each.kind == "link"}
    wants = "/etc/systemd/system/{}.wants/kuasar.service"
    assert links.pop(wants.format("multi-user.target")) == UNIT
    assert links.pop(wants.format("rke2-containerd.service")) == UNIT
    bins = os.path.dirname(sys.executable)
    assert links == {f"/usr/local/bin/{name}": f"{bins}/{name}" for name in ("containerd-shim-kuasar-v2", "kuasarctl")}
    unit = found[UNIT].text
    assert f"ExecStart={os.path.dirname(sys.executable)}/python3 -m kuasar.supervisor.start --config {CONFIG}\n" in unit
    assert "Before=rke2-containerd.service\n" in unit
    assert "$" not in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    config, _ = effective_config(str(tmp_path), Record())
    path = tmp_path / "kuasar.service"
    for text, good in ((contents(config, "", "containerd.service")[UNIT].text, True), ("[Service]\nTyp=x\n", False)):
        path.write_text(text)
        argv = ["systemd-analyze", "verify", "--man=no", str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        complaints = [line for line in done.stderr.splitlines() if str(path) in line or path.name in line]
        assert (complaints == []) is good, complaints


def test_a_configuration_that_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CONFIG[1:]
    path.parent.mkdir(parents=True)
    path.write_text('log_level = "loud"\n')
    with pytest.raises(ConfigError, match="log_level: 'loud' is none of"):
        effective_config(str(tmp_path), Record())
    path.write_text("x = [")
    with pytest.raises(InvalidArgument, match="not valid TOML"):
        effective_config(str(tmp_path), Record())
