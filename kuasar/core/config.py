"""The configuration: one TOML file, parsed once per process into frozen types.

All problems are reported at once, each with file and key; unknown keys are errors. Nothing below this module reads
environment variables or files of settings. Run-time state lives in the sandbox directories, never here.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from kuasar.core import log
from kuasar.core.engines import BACKEND_MODULES, GVISOR_PLATFORMS
from kuasar.core.errors import InvalidArgument, KuasarError

DEFAULT_PATH = "/etc/kuasar/kuasar.toml"
UNIX_PREFIX = "unix:"
"""Before a path where an address may stand as well."""


class ConfigError(KuasarError):
    """The configuration cannot be used; the message lists every problem, one per line, as ``file: key: what``."""

    kind = "invalid_argument"


@dataclass(frozen=True)
class Gateway:
    """``[gateway]``: the process that containerd talks to."""

    socket: str = "/run/kuasar/gateway.sock"
    """Unix socket of the Sandbox API and, over gRPC, of the Task API; mode 0600 in a 0700 directory."""
    task_socket: str = "/run/kuasar/task.sock"
    """Unix socket of the Task API over ttrpc."""
    task_api: str = "ttrpc"
    """What containerd is told to use for tasks: ``ttrpc`` (a third of the cost per call) or ``grpc``."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Largest gRPC request that is read; larger ones get RESOURCE_EXHAUSTED."""
    max_requests_in_flight: int = 2048
    """Requests (waits not counted) under way at once; more get RESOURCE_EXHAUSTED."""

    @property
    def task_address(self) -> str:
        """The address that containerd is given for the Task API."""
        if self.task_api == "ttrpc":
            return f"ttrpc+unix://{self.task_socket}"
        # containerd dials what follows the '+' as a plain path; "grpc+unix://" fails for tasks.
        return f"grpc+{self.socket}"


@dataclass(frozen=True)
class Containerd:
    """``[containerd]``: what we need to know of the containerd that uses us."""

    events: str = "/run/containerd/containerd.sock.ttrpc"
    """containerd's ttrpc socket, to which task events are forwarded."""


@dataclass(frozen=True)
class Supervisor:
    """``[supervisor]``: how the processes of the tree find supervisord, the zygote and the keeper."""

    socket: str = "/run/kuasar/supervisor.sock"
    """Unix socket of supervisord's XML-RPC, which supervisorctl uses, too."""
    zygote: str = "/run/kuasar/zygote.sock"
    """Unix socket of the zygote, from which workers and agents are forked."""
    keeper: str = "/run/kuasar/keeper.sock"
    """Unix socket of the keeper, which holds descriptors for gateway and workers; mode 0600 in a 0700 directory."""
    preload: tuple[str, ...] = (
        "wasmtime",
        "kuasar.agent.drivers.wasmtime",
        "kuasar.agent.drivers.wasmedge",
        "kuasar.agent.drivers.gvisor",
        "kuasar.workers.network",
    )
    """Modules the zygote imports before it forks, so that no sandbox pays for them; missing ones are skipped, with
    a line in the log."""
    log_max_bytes: int = 4 * 1024 * 1024
    """Size at which a log is rotated, and at which the older half of an agent's log goes; 0: never."""
    log_backups: int = 1
    """Rotated files that are kept of each log."""


@dataclass(frozen=True)
class Metrics:
    """``[metrics]``: the gateway's metrics for Prometheus (docs/metrics.md)."""

    listen: str = ""
    """Where they are served: ``unix:/path`` (a socket with mode 0600) or a loopback address with a port
    (``127.0.0.1:9477``, ``[::1]:9477``); empty: nowhere, and nothing is counted."""


@dataclass(frozen=True)
class Tracing:
    """``[tracing]``: traces of requests for OpenTelemetry (docs/tracing.md)."""

    endpoint: str = ""
    """URL of a collector that takes OTLP over HTTP (``http://localhost:4318/v1/traces``); empty: nothing is traced."""
    sample_ratio: float = 1.0
    """Share of the requests to trace, 0 to 1, of those whose caller does not say whether they are."""


@dataclass(frozen=True)
class Debug:
    """``[debug]``: for tests of ours, never for a node."""

    failpoints: bool = False
    """Whether files in ``<state_dir>/failpoints`` make our processes fail (docs/failpoints.md)."""


@dataclass(frozen=True)
class Sandboxer:
    """``[sandboxers.NAME]``: a name that containerd's configuration may use, and the engine behind it."""

    engine: str
    """Name of an entry in ``[engines]``."""


@dataclass(frozen=True)
class Engine:
    """``[engines.NAME]``: one engine with its typed settings; which keys mean something depends on ``kind``."""

    kind: str = ""
    """The backend module behind it; the engine's own name if empty."""
    binary: str = ""
    """Path or name of the engine's executable; the backend's usual name if empty."""
    cache_dir: str = ""
    """Where compiled modules and templates of machines are kept; ``<cache_dir>/<kind>`` if empty."""
    image: str = "/var/lib/kuasar/guest"
    """Directory of the guest image (kernel, initial memory disk, root disk, ``image.json``)."""
    kernel: str = ""
    """A kernel instead of the image's; the image's if empty."""
    kernel_arguments: str = ""
    """Words that are added to the guest kernel's command line."""
    accel: str = "auto"
    """``kvm``, ``tcg``, or ``auto``: KVM where it really runs a guest, else TCG."""
    template: bool = True
    """Whether machines start as clones of a template; if not, each boots."""
    memory_mib: int = 128
    """Memory that every machine has at least."""
    max_memory_mib: int = 16384
    """Memory that a machine can grow to."""
    max_vcpus: int = 8
    """Processors that a machine can grow to."""
    device_ports: int = 8
    """How many devices (cards, disks, the share, memory) can be plugged into a machine. Each costs a guest some time
    whenever one is."""
    huge_pages: bool = False
    """``qemu``: whether machines' memory is of the host's huge pages (of 2 MiB), which must be reserved
    (``vm.nr_hugepages``)."""
    shared_fs: str = "virtiofs"
    """``virtiofs``: a directory of the host serves root file systems and volumes; ``none``: only disks are possible,
    and a clone's memory is a private copy of its template's."""
    virtiofsd: str = "/usr/lib/qemu/virtiofsd"
    """The server of the shared directory."""
    channel: str = "auto"
    """``qemu``: how agents are reached: ``vsock`` (of the host's kernel), ``vhost-user-vsock`` (a daemon for each
    machine, which must boot: no template), ``virtio-serial``, or ``auto``: the first of them that works here, the
    daemon only if ``template`` is false."""
    vhost_device_vsock: str = "vhost-device-vsock"
    """Name or path of that daemon."""
    mkfs_erofs: str = "mkfs.erofs"
    """The program that packs root file systems of directories, for machines that share none."""
    vmm_user: str = "own"
    """As whom the program of a machine runs: ``own``, an unprivileged user for each sandbox, or ``root``."""
    machine: str = "q35"
    """``stratovirt``: ``q35``, which a firmware starts, or ``microvm``."""
    firmware: str = ""
    """``stratovirt``: the firmware of a ``q35`` (OVMF)."""
    plugin_dir: str = ""
    """``wasmedge``: directory of plug-ins; empty: those built in only."""
    platform: str = ""
    """``gvisor``: how system calls are intercepted, ``systrap`` or ``ptrace``; empty: the first of them that works."""


@dataclass(frozen=True)
class Config:
    """The whole file."""

    state_dir: str = "/run/kuasar"
    """Sandbox directories and sockets; lost at reboot, as the sandboxes are."""
    log_dir: str = "/var/log/kuasar"
    """Logs of our processes, and in `sandboxes/` those of each sandbox."""
    cache_dir: str = "/var/cache/kuasar"
    """Compiled Wasm modules and templates of machines; may be removed while nothing runs."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``; ``kuasarctl log-level`` changes it in running processes."""
    log_format: str = "logfmt"
    """Of our own lines: ``logfmt`` or ``json``. A guest's agent writes logfmt to its console in any case."""
    gateway: Gateway = Gateway()
    containerd: Containerd = Containerd()
    supervisor: Supervisor = Supervisor()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    debug: Debug = Debug()
    sandboxers: dict[str, Sandboxer] = field(
        default_factory=lambda: {f"kuasar-{kind}": Sandboxer(engine=kind) for kind in BACKEND_MODULES}
    )
    """One for each engine, unless the file has any."""
    engines: dict[str, Engine] = field(default_factory=lambda: {kind: Engine(kind=kind) for kind in BACKEND_MODULES})
    path: str = ""
    """The file this came from; empty for the defaults. Set by :func:`load`, not a key."""

    @property
    def sandboxes_dir(self) -> str:
        """Parent of all sandbox directories."""
        return f"{self.state_dir}/sandboxes"

    @property
    def sandbox_log_dir(self) -> str:
        """Where each worker's log and each sandbox's own output are kept."""
        return f"{self.log_dir}/sandboxes"

    def engine(self, name: str) -> Engine:
        """The settings of an engine, with what is left open filled in. Raises :class:`InvalidArgument`."""
        settings = self.engines.get(name)
        if settings is None:
            known = ", ".join(sorted(self.engines))
            raise InvalidArgument(f"engine: no engine {name!r} is configured (there are: {known})", field="engine")
        kind = settings.kind or name
        return dataclasses.replace(settings, kind=kind, cache_dir=settings.cache_dir or f"{self.cache_dir}/{kind}")

    @property
    def failpoints_dir(self) -> str:
        """Where failpoints are armed; empty where they do not exist."""
        return f"{self.state_dir}/failpoints" if self.debug.failpoints else ""

    @property
    def bus_address(self) -> str:
        """The ZeroMQ endpoint of the gateway's ROUTER."""
        return f"ipc://{self.state_dir}/bus.sock"


TASK_APIS = ("ttrpc", "grpc")
_MAX_SOCKET_PATH = 107
_MOST_VCPUS = 240
_MOST_PORTS = 96


def load(path: str | None = None) -> Config:
    """Read and check the file at ``path`` (default: /etc/kuasar/kuasar.toml, or the defaults where that is absent).

    Raises :class:`ConfigError` with every problem at once.
    """
    if path is None:
        if not os.path.exists(DEFAULT_PATH):
            return Config()
        path = DEFAULT_PATH
    try:
        with open(path, "rb") as file:
            raw = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    return parse(raw, path)


def parse(raw: dict[str, Any], path: str = "<config>") -> Config:
    """Check decoded TOML against :class:`Config`; ``path`` only names the file in the problems."""
    problems: list[str] = []
    values = _check_table(Config, raw, "", problems, skip=("path",))
    config = Config(**values, path=path)
    if not problems:
        _check_meaning(config, problems)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def _check_table(
    cls: type[Any], raw: dict[str, Any], prefix: str, problems: list[str], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The keyword arguments for ``cls`` found in ``raw``; everything wrong is appended to ``problems``."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in skip}
    problems.extend(
        f"{prefix}{key}: unknown key (known: {', '.join(sorted(fields))})" for key in raw if key not in fields
    )
    values: dict[str, Any] = {}
    for name, fld in fields.items():
        value = None
        required = fld.default is dataclasses.MISSING and fld.default_factory is dataclasses.MISSING
        if name in raw:
            value = _check_value(hints[name], raw[name], prefix + name, problems)
        elif required:
            problems.append(f"{prefix}{name}: missing")
        if value is not None or required:
            values[name] = value  # what is wrong is never used: the problems are raised before
    return values


def _check_value(hint: Any, raw: Any, key: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(raw, dict):
            problems.append(f"{key}: a table is needed, got {_name_of(raw)}")
            return None
        return hint(**_check_table(hint, raw, key + ".", problems))
    origin = typing.get_origin(hint)
    if origin is dict:
        if not isinstance(raw, dict):
            problems.append(f"{key}: a table is needed, got {_name_of(raw)}")
            return None
        inner = typing.get_args(hint)[1]
        checked = {name: _check_value(inner, value, f"{key}.{name}", problems) for name, value in raw.items()}
        return {name: value for name, value in checked.items() if value is not None}
    if origin is tuple:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            problems.append(f"{key}: a list of strings is needed, got {_name_of(raw)}")
            return None
        return tuple(raw)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{key}: union types are not used in the configuration")
    if hint is float and type(raw) is int:
        return float(raw)
    if type(raw) is not hint:
        problems.append(f"{key}: {hint.__name__} is needed, got {_name_of(raw)}")
        return None
    return raw


def _name_of(raw: Any) -> str:
    return {"dict": "a table", "list": "a list", "str": "a string", "bool": "a boolean"}.get(
        type(raw).__name__, type(raw).__name__
    )


def _check_meaning(config: Config, problems: list[str]) -> None:
    """What types cannot say: references, ranges, path forms."""
    for key, value, allowed in (
        ("log_level", config.log_level, log.LEVELS),
        ("log_format", config.log_format, log.FORMATS),
    ):
        if value not in allowed:
            problems.append(f"{key}: {value!r} is none of {', '.join(allowed)}")
    for key in ("state_dir", "log_dir", "cache_dir"):
        value = getattr(config, key)
        if not os.path.isabs(value) or os.path.normpath(value) != value:
            problems.append(f"{key}: {value!r} is not a normalised absolute path")
    sockets = {
        "gateway.socket": config.gateway.socket,
        "gateway.task_socket": config.gateway.task_socket,
        "supervisor.socket": config.supervisor.socket,
        "supervisor.zygote": config.supervisor.zygote,
        "supervisor.keeper": config.supervisor.keeper,
    }
    if config.metrics.listen.startswith(UNIX_PREFIX):
        sockets["metrics.listen"] = config.metrics.listen.removeprefix(UNIX_PREFIX)
    elif config.metrics.listen and not _is_loopback(config.metrics.listen):
        problems.append(
            f"metrics.listen: {config.metrics.listen!r} is neither unix:/path nor a loopback address with a port"
        )
    if config.tracing.endpoint and not _is_url(config.tracing.endpoint):
        problems.append(f"tracing.endpoint: {config.tracing.endpoint!r} is no http:// or https:// URL with a host")
    if not 0 <= config.tracing.sample_ratio <= 1:
        problems.append("tracing.sample_ratio: must be between 0 and 1")
    for key, value in sockets.items():
        if not os.path.isabs(value):
            problems.append(f"{key}: {value!r} is not an absolute path")
        if len(os.fsencode(value)) > _MAX_SOCKET_PATH:
            problems.append(f"{key}: longer than the {_MAX_SOCKET_PATH} bytes the kernel allows for a unix socket")
    if config.gateway.max_message_bytes < 1024 * 1024:
        problems.append("gateway.max_message_bytes: at least 1048576 (an OCI specification must fit)")
    if config.gateway.task_api not in TASK_APIS:
        problems.append(f"gateway.task_api: {config.gateway.task_api!r} is none of {', '.join(TASK_APIS)}")
    if config.gateway.max_requests_in_flight < 1:
        problems.append("gateway.max_requests_in_flight: at least 1")
    if config.supervisor.log_max_bytes < 0 or config.supervisor.log_backups < 0:
        problems.append("supervisor.log_max_bytes, supervisor.log_backups: must not be negative")
    for name, engine in config.engines.items():
        kind = engine.kind or name
        if kind not in BACKEND_MODULES:
            problems.append(f"engines.{name}.kind: {kind!r} is none of {', '.join(sorted(BACKEND_MODULES))}")
        if engine.platform not in ("", *GVISOR_PLATFORMS):
            problems.append(f"engines.{name}.platform: {engine.platform!r} is none of {', '.join(GVISOR_PLATFORMS)}")
        if engine.plugin_dir and not os.path.isabs(engine.plugin_dir):
            problems.append(f"engines.{name}.plugin_dir: {engine.plugin_dir!r} is not an absolute path")
        _check_machine(f"engines.{name}", engine, problems)
    for name, sandboxer in config.sandboxers.items():
        if sandboxer.engine not in config.engines:
            known = ", ".join(sorted(config.engines)) or "none"
            problems.append(
                f"sandboxers.{name}.engine: no [engines.{sandboxer.engine}] in this file (there are: {known})"
            )


def _is_loopback(address: str) -> bool:
    """Whether it is ``address:port``, on this host only; names are not looked up."""
    import ipaddress  # 2 ms for all processes, and few have metrics

    host, _, port = address.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) < 1 << 16
    except ValueError:
        return False


def _is_url(text: str) -> bool:
    from urllib.parse import urlsplit  # likewise

    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_machine(key: str, engine: Engine, problems: list[str]) -> None:
    """The settings of engines that run virtual machines."""
    choices = {
        "accel": ("auto", "kvm", "tcg"),
        "channel": ("auto", "vsock", "vhost-user-vsock", "virtio-serial"),
        "shared_fs": ("virtiofs", "none"),
        "vmm_user": ("own", "root"),
        "machine": ("q35", "microvm"),
    }
    for name, allowed in choices.items():
        if getattr(engine, name) not in allowed:
            problems.append(f"{key}.{name}: {getattr(engine, name)!r} is none of {', '.join(allowed)}")
    if not 64 <= engine.memory_mib <= engine.max_memory_mib:
        problems.append(f"{key}.memory_mib: must be between 64 and max_memory_mib ({engine.max_memory_mib})")
    if engine.huge_pages and (engine.memory_mib % 2 or engine.max_memory_mib % 2):
        problems.append(f"{key}.memory_mib, {key}.max_memory_mib: must be even, as huge pages have 2 MiB")
    if not 1 <= engine.max_vcpus <= _MOST_VCPUS:
        problems.append(f"{key}.max_vcpus: must be between 1 and {_MOST_VCPUS}")
    if not 4 <= engine.device_ports <= _MOST_PORTS:
        problems.append(f"{key}.device_ports: must be between 4 and {_MOST_PORTS}")
    for name in ("image", "kernel", "virtiofsd", "firmware"):
        value = getattr(engine, name)
        if value and not os.path.isabs(value):
            problems.append(f"{key}.{name}: {value!r} is not an absolute path")
