"""containerd: whether it answers, is new enough, and knows us; the CNI plugins that its network configuration names."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from kuasar.cli.ctl.doctor.finding import Finding, failed, passed, warned
from kuasar.cli.ctl.node import listener_pid
from kuasar.core.config import Config

_NEEDED = (2, 1)
_SECONDS = 10.0
_SHIM = "containerd-shim-kuasar-v2"
_RUNTIME = "io.containerd.kuasar.v2"
_DROP_IN = "kuasarctl install gives containerd the runtimes that kuasar.toml has"


def check(config: Config) -> Iterator[Finding]:
    """All of it."""
    from kuasar.cli.cri import CriClient, CriError

    path = config.containerd.events.removesuffix(".ttrpc")
    try:
        pid = listener_pid(path)
    except OSError as exc:
        remedy = "start containerd, or name its socket with containerd.events in kuasar.toml"
        yield failed("containerd", f"nobody listens on {path}: {exc.strerror or exc}", remedy)
        return
    try:
        with CriClient(path, timeout=_SECONDS) as cri:
            version = cri.version()
            status = cri.runtime_status(verbose=True)
    except CriError as exc:
        yield failed("containerd", f"its CRI does not answer at {path}: {exc}", "see containerd's log")
        return
    yield _version(version.runtime_version)
    try:
        settings: dict[str, Any] = json.loads(status.info.get("config", "{}"))
    except ValueError:
        settings = {}
    yield from _handlers(config, settings)
    yield find_shim(pid)
    yield from _network({each.type: (each.status, each.message) for each in status.status.conditions}, settings)


def _version(text: str) -> Finding:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    wanted = ".".join(map(str, _NEEDED))
    if match is None or (int(match[1]), int(match[2])) < _NEEDED:
        return failed("containerd", f"{text} is too old for the Sandbox API", f"install containerd {wanted} or newer")
    return passed("containerd", f"{text} answers")


def _handlers(config: Config, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Which of its runtimes are ours, and whether each has a sandboxer that we know."""
    check = "containerd's configuration"
    runtimes = (settings.get("containerd") or {}).get("runtimes") or {}
    ours = {name: entry for name, entry in runtimes.items() if _of(entry, "runtimeType", "runtime_type") == _RUNTIME}
    if not ours:
        yield failed(check, f"no runtime has runtime_type {_RUNTIME}", _DROP_IN)
        return
    wrong = {
        name: _of(entry, "sandboxer")
        for name, entry in ours.items()
        if _of(entry, "sandboxer") not in config.sandboxers
    }
    if wrong:
        words = ", ".join(f"{name} has sandboxer {sandboxer!r}" for name, sandboxer in sorted(wrong.items()))
        known = " ".join(sorted(config.sandboxers))
        yield warned(check, f"{words}, which kuasar.toml does not have (it has: {known})", _DROP_IN)
        return
    yield passed(check, f"runtimes: {' '.join(sorted(ours))}")


def _of(entry: Mapping[str, Any], *names: str) -> str:
    return next((str(entry[name]) for name in names if entry.get(name)), "")


def find_shim(pid: int) -> Finding:
    """On the PATH that containerd, process ``pid``, has, not on ours."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
    except OSError as exc:
        return warned("shim", f"containerd's PATH cannot be read: {exc.strerror}", "run this on the host, as root")
    path = os.fsdecode(words.get(b"PATH", b""))
    found = shutil.which(_SHIM, path=path)
    if found is None:
        remedy = f"put a link to {_SHIM} into one of these directories"
        return failed("shim", f"{_SHIM} is not on containerd's PATH ({path})", remedy)
    return passed("shim", found)


def _network(conditions: Mapping[str, tuple[bool, str]], settings: Mapping[str, Any]) -> Iterator[Finding]:
    ready, message = conditions.get("NetworkReady", (False, "containerd does not say"))
    cni = settings.get("cni") or {}
    directories = [str(each) for each in cni.get("binDirs") or [cni.get("binDir") or "/opt/cni/bin"]]
    configured = str(cni.get("confDir") or "/etc/cni/net.d")
    missing = [name for name in sorted(plugins_of(configured)) if not _find(name, directories)]
    if missing:
        reason = f"{configured} names {' '.join(missing)}, not to be found in {' '.join(directories)}"
        yield warned("cni", reason, "install the CNI plugins (package containernetworking-plugins), or set bin_dirs")
    elif not ready:
        remedy = f"put a network configuration into {configured}; pods on the host's network work without"
        yield warned("cni", f"no pod network: {message}", remedy)
    else:
        yield passed("cni", f"{configured}: {' '.join(sorted(plugins_of(configured)))}")


def plugins_of(directory: str) -> set[str]:
    """The plugins that the network configuration in ``directory`` names. Files that are none are skipped."""
    found: set[str] = set()
    if not os.path.isdir(directory):
        return found
    for name in sorted(os.listdir(directory)):
        if name.endswith((".conf", ".conflist", ".json")):
            try:
                with open(f"{directory}/{name}", encoding="utf-8") as file:
                    values = json.load(file)
                for each in values.get("plugins") or [values]:
                    found.add(str(each["type"]))
                    if isinstance(each.get("ipam"), dict) and each["ipam"].get("type"):
                        found.add(str(each["ipam"]["type"]))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
    return found


def _find(name: str, directories: list[str]) -> bool:
    return any(os.access(f"{directory}/{name}", os.X_OK) for directory in directories)
