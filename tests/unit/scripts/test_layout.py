"""The files a stack is configured by: valid for their readers; nothing in them lies outside the stack's directories."""

from __future__ import annotations

import configparser
import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.config import Config, load
from scripts.layout import CHECKOUT, Layout, default_settings, engine_settings, render, runtimes
from tests import needs

needs_root = needs.ROOT


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    made = Layout(name=f"u{secrets.token_hex(3)}", data=str(tmp_path))
    yield made
    shutil.rmtree(made.run)


def toml(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return tomllib.load(file)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def test_drop_in_names_the_sandboxers_that_the_configuration_has() -> None:
    drop_in = toml(f"{CHECKOUT}/etc/containerd/kuasar.toml")
    config = Config()
    assert set(drop_in["proxy_plugins"]) == set(config.sandboxers)
    for plugin in drop_in["proxy_plugins"].values():
        assert plugin == {"type": "sandbox", "address": config.gateway.socket}
    runtimes = drop_in["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert {name: runtime["sandboxer"] for name, runtime in runtimes.items()} == {n: n for n in config.sandboxers}


@needs_root
def test_rendered_configuration_is_accepted_and_keeps_to_its_directories(layout: Layout) -> None:
    render(layout, "localhost/kuasar/pause:1")
    config = load(layout.config)
    assert config.gateway.socket == layout.gateway_socket
    assert config.containerd.events == layout.containerd_socket + ".ttrpc"
    containerd = toml(f"{layout.run}/containerd.toml")
    drop_in = toml(containerd["imports"][0])
    assert {plugin["address"] for plugin in drop_in["proxy_plugins"].values()} == {layout.gateway_socket}
    mine = (layout.run, layout.data, f"{CHECKOUT}/.kuasar/")  # the checkout's engines are read, not written
    known = {"/usr/lib/cni", "/opt/cni/bin", "/var/log/kuasar"}
    paths = [text for text in strings([containerd, toml(layout.config)]) if text.startswith("/")]
    assert paths
    assert [path for path in paths if not path.startswith(mine) and path not in known] == []


@needs_root
def test_network_is_the_stacks_own(layout: Layout) -> None:
    render(layout, "localhost/kuasar/pause:1")
    with open(f"{layout.cni_conf_dir}/10-kuasar.conflist", encoding="utf-8") as file:
        network = json.load(file)
    bridge = network["plugins"][0]
    assert network["name"] == layout.network
    assert bridge["bridge"] == layout.bridge and len(layout.bridge) <= 15
    assert bridge["ipam"]["dataDir"].startswith(layout.run)
    assert bridge["ipam"]["ranges"] == [[{"subnet": layout.subnet}]]


@needs_root
def test_extra_settings_are_appended(tmp_path: Path) -> None:
    layout = Layout(name=f"u{secrets.token_hex(3)}", data=str(tmp_path), settings='[engines.runc]\nbinary = "crun"\n')
    try:
        render(layout, "localhost/kuasar/pause:1")
        with open(layout.config, encoding="utf-8") as file:
            assert tomllib.loads(file.read())["engines"]["runc"] == {"binary": "crun"}
    finally:
        shutil.rmtree(layout.run)


@needs_root
def test_extra_handlers_are_declared(tmp_path: Path) -> None:
    settings = f"""{default_settings()}
[sandboxers.kuasar-2]
engine = "second"
{engine_settings("second", "qemu", template=False, accel="tcg")}"""
    layout = Layout(f"u{secrets.token_hex(3)}", str(tmp_path), settings=settings, handlers=("kuasar-2",))
    try:
        render(layout, "localhost/kuasar/pause:1")
        config, drop_in = load(layout.config), toml(f"{layout.run}/containerd-kuasar.toml")
    finally:
        shutil.rmtree(layout.run)
    second = config.engine(config.sandboxers["kuasar-2"].engine)
    assert (second.kind, second.template, second.accel) == ("qemu", False, "tcg")
    assert second.image == config.engine("qemu").image
    assert drop_in["proxy_plugins"]["kuasar-2"] == {"type": "sandbox", "address": layout.gateway_socket}
    handlers = drop_in["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert handlers["kuasar-2"] == {"runtime_type": "io.containerd.kuasar.v2", "sandboxer": "kuasar-2"}
    assert set(handlers) == runtimes(layout) == runtimes(Layout()) | {"kuasar-2"}


@pytest.mark.parametrize("handler", ["", "Kuasar", "a]b", "a.b"])
def test_handlers_that_are_no_names_are_refused(handler: str) -> None:
    with pytest.raises(ValueError, match="handlers: "):
        Layout(handlers=(handler,))


@needs_root
def test_containerd_of_others_is_not_started(tmp_path: Path) -> None:
    layout = Layout(name=f"u{secrets.token_hex(3)}", data=str(tmp_path), foreign_containerd="/run/x/containerd.sock")
    try:
        render(layout, "localhost/kuasar/pause:1")
        assert os.listdir(f"{layout.run}/supervisord.d") == []
        assert layout.containerd_socket == "/run/x/containerd.sock"
        assert load(layout.config).containerd.events == "/run/x/containerd.sock.ttrpc"
    finally:
        shutil.rmtree(layout.run)


@needs_root
def test_containerd_runs_under_supervisord_once_the_gateway_listens(layout: Layout) -> None:
    render(layout, "localhost/kuasar/pause:1")
    parser = configparser.RawConfigParser()
    parser.read(f"{layout.run}/supervisord.d/containerd.conf")
    words = parser["program:containerd"]["command"].split()
    assert words[-2:] == ["--config", f"{layout.run}/containerd.toml"]
    assert words[3:5] == [f"{CHECKOUT}/scripts/when_listening.py", layout.gateway_socket]


@pytest.mark.parametrize("name", ["", "ninechars", "a/b", "../x", "A", "a b"])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name:"):
        Layout(name=name)


def test_no_file_names_a_mirror() -> None:
    files = [*Path(CHECKOUT, "scripts").rglob("*"), *Path(CHECKOUT, "etc").rglob("*"), Path(CHECKOUT, "Makefile")]
    for path in files:
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not a host
            assert not re.search(r"https?://(?!localhost)", text), path
