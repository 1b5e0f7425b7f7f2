"""Where the project's own stack keeps its things, and the files that configure it.

A stack is supervisord with gateway, zygote, workers and, unless another one is named, a containerd of its own. Stacks
with different layouts run beside each other: the developer's (`make run`) and one per test session.
"""

from __future__ import annotations

import json
import os
import re
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from kuasar.core.config import Config

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONTAINERD_BIN = f"{CHECKOUT}/.kuasar/containerd/usr/bin"
GUEST_IMAGE = f"{CHECKOUT}/.kuasar/guest/image"
MACHINE_CACHE = f"{CHECKOUT}/.kuasar/qemu"
"""Templates of machines, for all stacks of this checkout."""
VSOCK_DAEMON = f"{CHECKOUT}/.kuasar/vhost-device-vsock/usr/bin/vhost-device-vsock"
"""Where ``scripts/fetch-vhost-device-vsock.sh`` puts it, for tests that want it."""
_OURS: dict[str, dict[str, str]] = {
    "clh": {"image": GUEST_IMAGE},
    "firecracker": {"image": GUEST_IMAGE},
    "gvisor": {"binary": f"{CHECKOUT}/.kuasar/runsc/usr/bin/runsc"},
    "qemu": {"image": GUEST_IMAGE, "cache_dir": MACHINE_CACHE},
    "stratovirt": {"image": GUEST_IMAGE},
    "wasmedge": {"binary": f"{CHECKOUT}/.kuasar/wasmedge/usr/bin/wasmedge"},
}
"""Settings of engines: what this checkout has built or fetched."""
_DROP_IN_ADDRESS = '"/run/kuasar/gateway.sock"'
_HANDLER = """
[proxy_plugins.{name}]
  type = "sandbox"
  address = {address}

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
  runtime_type = "io.containerd.kuasar.v2"
  sandboxer = "{name}"
"""


@dataclass(frozen=True)
class Layout:
    """Names and directories of one stack. Nothing else of the machine is written to, but see scripts/leftovers.py."""

    name: str = "dev"
    """At most 8 characters: the bridge and the CNI network are named after it."""
    data: str = f"{CHECKOUT}/.kuasar/stack"
    """What outlives a stop: images, logs, compiled modules."""
    subnet: str = "10.123.0.0/20"
    settings: str = ""
    """Tables appended to kuasar.toml (TOML)."""
    handlers: tuple[str, ...] = ()
    """Sandboxers of ``settings`` that get a runtime handler of their name, beside those of our drop-in."""
    environment: tuple[tuple[str, str], ...] = ()
    """Of the stack's containerd, beside what it needs: names and values without quotes."""
    foreign_containerd: str = ""
    """Socket of a running containerd to use instead of starting one; it must have our drop-in."""

    def __post_init__(self) -> None:
        """Raises ValueError for a name that does not fit into that of an interface, and one that is no handler's."""
        if not re.fullmatch("[a-z0-9]{1,8}", self.name):
            raise ValueError(f"name: {self.name!r} is not 1 to 8 lower-case letters and digits")
        for handler in self.handlers:
            if not re.fullmatch("[a-z0-9-]+", handler):
                raise ValueError(f"handlers: {handler!r} is not lower-case letters, digits and dashes")

    @property
    def run(self) -> str:
        """What a stop removes. Short, because socket paths have 107 bytes."""
        return f"/run/kuasar-{self.name}"

    @property
    def config(self) -> str:
        """kuasar.toml of this stack."""
        return f"{self.run}/kuasar.toml"

    @property
    def supervisord_conf(self) -> str:
        """For supervisord and supervisorctl."""
        return f"{self.run}/supervisord.conf"

    @property
    def gateway_socket(self) -> str:
        """Where containerd finds us."""
        return f"{self.run}/gateway.sock"

    @property
    def containerd_socket(self) -> str:
        """Where the stack's containerd listens, for CRI and ctr."""
        return self.foreign_containerd or f"{self.run}/containerd.sock"

    @property
    def containerd_state(self) -> str:
        """Bundles, FIFOs and network namespaces."""
        return f"{self.run}/containerd"

    @property
    def containerd_root(self) -> str:
        """Images and snapshots."""
        return f"{self.data}/containerd"

    @property
    def scratch(self) -> str:
        """The empty file system that every root file system in an image file starts as."""
        return f"{self.data}/scratch.ext4"

    @property
    def logs(self) -> str:
        """A log per process, and per sandbox in sandboxes/."""
        return f"{self.data}/logs"

    @property
    def images(self) -> str:
        """Archives that were built and imported."""
        return f"{self.data}/images"

    @property
    def bridge(self) -> str:
        """Network interface of the pods' network."""
        return f"kuasar-{self.name}"

    @property
    def network(self) -> str:
        """Name of the CNI network."""
        return f"kuasar-{self.name}"

    @property
    def cgroup_parent(self) -> str:
        """For pods whose cgroups shall be attributable to the stack."""
        return f"/kuasar-{self.name}"

    @property
    def cni_conf_dir(self) -> str:
        """Where containerd looks for the network."""
        return f"{self.run}/cni/net.d"


def search_path() -> str:
    """PATH of containerd: its own programs, our shim, then the system's."""
    virtual_env = os.path.dirname(os.path.abspath(sys.executable))
    return f"{CONTAINERD_BIN}:{virtual_env}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def runtimes(layout: Layout) -> set[str]:
    """The runtime handlers that the stack's drop-in for containerd declares."""
    return set(re.findall(r"^\[plugins.*\.runtimes\.([a-z0-9-]+)\]$", _drop_in(layout), re.MULTILINE))


def render(layout: Layout, pause_image: str) -> None:
    """Write all configuration of the stack except supervisord's, which kuasar.supervisor.render makes."""
    for directory in (layout.run, layout.data, layout.logs, layout.images, layout.cni_conf_dir):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    os.makedirs(f"{layout.run}/supervisord.d", mode=0o700, exist_ok=True)
    _write(layout.config, _kuasar_toml(layout))
    _write(f"{layout.run}/containerd-kuasar.toml", _drop_in(layout))
    if layout.foreign_containerd:
        return
    values = {
        "root": layout.containerd_root,
        "scratch": layout.scratch,
        "state": layout.containerd_state,
        "socket": layout.containerd_socket,
        "drop_in": f"{layout.run}/containerd-kuasar.toml",
        "pause_image": pause_image,
        "cni_conf_dir": layout.cni_conf_dir,
        "network": layout.network,
        "bridge": layout.bridge,
        "subnet": layout.subnet,
        "ipam_dir": f"{layout.run}/cni/ipam",
    }
    _write(f"{layout.run}/containerd.toml", string.Template(_template("containerd/private.toml")).substitute(values))
    _write(
        f"{layout.cni_conf_dir}/10-kuasar.conflist",
        string.Template(_template("cni/kuasar.conflist")).substitute(values),
    )
    _write(f"{layout.run}/supervisord.d/containerd.conf", _containerd_program(layout))


def _drop_in(layout: Layout) -> str:
    address = json.dumps(layout.gateway_socket)
    shipped = _template("containerd/kuasar.toml").replace(_DROP_IN_ADDRESS, address)
    return shipped + "".join(_HANDLER.format(name=name, address=address) for name in layout.handlers)


def _kuasar_toml(layout: Layout) -> str:
    # a JSON string is a TOML string
    return f"""\
state_dir = {json.dumps(layout.run)}
log_dir = {json.dumps(layout.logs)}
cache_dir = {json.dumps(layout.data + "/cache")}

[gateway]
socket = {json.dumps(layout.gateway_socket)}
task_socket = {json.dumps(layout.run + "/task.sock")}

[containerd]
events = {json.dumps(layout.containerd_socket + ".ttrpc")}

[supervisor]
socket = {json.dumps(layout.run + "/supervisor.sock")}
zygote = {json.dumps(layout.run + "/zygote.sock")}
keeper = {json.dumps(layout.run + "/keeper.sock")}

{layout.settings or default_settings()}"""


def default_settings(**changes: Mapping[str, str | bool]) -> str:
    """All engines and sandboxers of the product's defaults, with what this checkout has built, and ``changes`` of
    keys, by the engine's kind."""
    defaults = Config()
    tables = [
        f"[sandboxers.{name}]\nengine = {json.dumps(each.engine)}\n" for name, each in defaults.sandboxers.items()
    ]
    for name, engine in defaults.engines.items():
        tables.append(engine_settings(name, engine.kind, **changes.get(engine.kind, {})))
    return "".join(tables)


def engine_settings(name: str, kind: str, **changes: str | bool) -> str:
    """The table of an engine with what this checkout has built, and ``changes``."""
    keys = {"kind": kind, **_OURS.get(kind, {}), **changes}
    return f"[engines.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def _containerd(layout: Layout) -> str:
    return f"{CONTAINERD_BIN}/containerd --config {layout.run}/containerd.toml"


def _containerd_program(layout: Layout) -> str:
    more = "".join(f',{name}="{value}"' for name, value in layout.environment)
    text = f"""\
[program:containerd]
command = {sys.executable} -I -S {CHECKOUT}/scripts/when_listening.py {layout.gateway_socket} {_containerd(layout)}
environment = PATH="{search_path()}",KUASAR_CONFIG="{layout.config}"{more}
priority = 950
startsecs = 1
startretries = 1000000000
autorestart = true
stopwaitsecs = 10
redirect_stderr = true
stdout_logfile = {layout.logs}/containerd.log
stdout_logfile_maxbytes = 16MB
stdout_logfile_backups = 1
"""
    return text.replace("%", "%%")  # '%' starts an expansion in supervisord's files


def _template(name: str) -> str:
    with open(f"{CHECKOUT}/etc/{name}", encoding="utf-8") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)
