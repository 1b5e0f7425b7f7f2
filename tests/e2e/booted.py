"""A node with a systemd of its own: the real one, as process 1 of new namespaces, with a root directory of its own.

The machine's ``/usr`` is there, read-only, but for ``/usr/local``; and so is the checkout. ``/etc``, ``/var`` and
``/usr/local`` are files of the test, and what an installation does to them can be compared, byte for byte. containerd
runs as ``containerd.service``, as on a node. When the node ends the kernel ends all its processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kuasar.cli.cri import CriClient
from kuasar.cli.images import BUSYBOX, busybox_image, write_archive
from kuasar.core.cgroup import current
from scripts.layout import CHECKOUT, CONTAINERD_BIN
from tests.deadline import eventually

BOOT_SECONDS = 60.0
CALL_SECONDS = 60.0
_COMMAND_SECONDS = 300.0
_MACHINES = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "alternatives", "machine-id")
"""Files of the machine's /etc that programs need."""
CONTAINERD_CONFIG = """\
# the node's own settings

version = 3   # of this file

[plugins.'io.containerd.nri.v1.nri']
  disable = true

[plugins.'io.containerd.cri.v1.runtime']
  # without CAP_SYS_RESOURCE a score cannot be lowered
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
CONTAINERD_UNIT = f"""\
[Unit]
Description=containerd
[Service]
Type=notify
Environment=PATH=/usr/local/sbin:/usr/local/bin:{CONTAINERD_BIN}:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart={CONTAINERD_BIN}/containerd
KillMode=process
Delegate=yes
TimeoutStartSec=30
[Install]
WantedBy=multi-user.target
"""
_NETWORK = """\
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods0", "isGateway": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "dataDir": "/run/cni"}}]}
"""
KUASARCTL = f"{os.path.dirname(sys.executable)}/kuasarctl"
CONTAINERD = f"{CONTAINERD_BIN}/containerd"
_CHANGING = ("/var/lib/containerd", "/var/lib/cni", "/var/tmp", "/etc/resolv.conf", "/opt")
"""What containerd and CNI write by themselves."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class BootedNode:
    """A node that runs."""

    directory: str
    pid: int
    """systemd's, seen from here."""

    @property
    def root(self) -> str:
        """Its root directory on the disk."""
        return f"{self.directory}/root"

    def path(self, path: str) -> str:
        """A path of the node, with all its mounts, from here."""
        return f"/proc/{self.pid}/root{path}"

    def run(self, *argv: str, check: bool = True) -> Done:
        """Run a command on the node as root."""
        enter = ["nsenter", "--target", str(self.pid), "--all", "--root", "--wd=/"]
        done = subprocess.run(
            [*enter, "--", "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
        )
        assert not check or done.returncode == 0, (
            f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def install(self, *options: str, check: bool = True) -> Done:
        """``kuasarctl install`` of the checkout."""
        return self.run(KUASARCTL, "install", "--containerd", CONTAINERD, *options, check=check)

    def uninstall(self, *options: str, check: bool = True) -> Done:
        """``kuasarctl uninstall``."""
        return self.run(KUASARCTL, "uninstall", *options, check=check)

    def supervisorctl(self, *words: str) -> str:
        """What an operator asks supervisord, and what it says."""
        argv = [sys.executable, "-m", "supervisor.supervisorctl", "-c", "/run/kuasar/supervisord.conf"]
        return self.run(*argv, *words).out

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).out.strip()

    def state(self, unit: str) -> str:
        """``active``, ``inactive``, ``failed``, …"""
        return self.show(unit, "ActiveState")

    def overall(self) -> str:
        """``starting``, ``running``, ``degraded``, …"""
        return self.run("systemctl", "is-system-running", check=False).out.strip()

    def main_pid(self, unit: str) -> int:
        """Of a service, as the node counts; 0 if it does not run."""
        return int(self.show(unit, "MainPID"))

    def cri(self) -> CriClient:
        """A client of its containerd."""
        return CriClient(self.path("/run/containerd/containerd.sock"), timeout=CALL_SECONDS)

    def handlers(self) -> set[str]:
        """The runtimes that containerd has."""
        with self.cri() as cri:
            return {handler.name for handler in cri.runtime_status().runtime_handlers if handler.name}

    def add_image(self) -> str:
        """Import the test image and give its name."""
        write_archive(busybox_image(), f"{self.root}/var/tmp/image.tar")
        self.run(f"{CONTAINERD_BIN}/ctr", "--namespace", "k8s.io", "images", "import", "/var/tmp/image.tar")
        with self.cri() as cri:  # it hears of images by an event
            eventually(lambda: cri.image_status(BUSYBOX), "CRI knows the image")
        return BUSYBOX

    def logs(self) -> str:
        """What may tell why something failed."""
        texts = []
        for path in (f"{self.directory}/console", *(f"{self.root}/var/log/kuasar/{name}.log" for name in _LOGS)):
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    texts.append(f"--- {path}\n{file.read()[-3000:]}")
        return "\n".join(texts)

    def tree(self) -> dict[str, tuple[str, int, int, int, bytes, int]]:
        """All that is in /etc, /var and /usr/local: kind, mode, owner, content, and for files the time of change."""
        found = {}
        for top, prefix in ((self.root, ""), (f"{self.root}.local", "/usr/local")):
            for directory, names, files in os.walk(top):
                inside = prefix + directory[len(top) :]
                names[:] = [name for name in names if f"{inside}/{name}" not in _CHANGING]
                for name in (*names, *files):
                    if f"{inside}/{name}" not in _CHANGING:
                        found[f"{inside}/{name}"] = _describe(f"{directory}/{name}")
        return found


_LOGS = ("supervisord", "gateway", "reconciler", "zygote")


def _describe(path: str) -> tuple[str, int, int, int, bytes, int]:
    status = os.lstat(path)
    content, changed = b"", 0
    if stat.S_ISLNK(status.st_mode):
        content = os.fsencode(os.readlink(path))
    elif stat.S_ISREG(status.st_mode):
        changed = status.st_mtime_ns
        with open(path, "rb") as file:
            content = file.read()
    kind = stat.filemode(status.st_mode)[0]
    return kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, content, changed


@contextmanager
def booted_node() -> Iterator[BootedNode]:
    """A node on which containerd runs, and nothing of ours."""
    with ExitStack() as stack:
        # short, because sockets are reached through it, and on a true file system, as overlays need it
        directory = tempfile.mkdtemp(prefix="kuasar-boot-", dir="/var/tmp")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        _furnish(directory)
        cgroup = f"/kuasar-boot-{os.getpid()}"
        stack.callback(_remove_cgroup, cgroup)
        stack.enter_context(_unshared(directory, cgroup))
        node = BootedNode(directory, _process_1(directory))
        eventually(
            node.overall,
            "systemd has started everything",
            timeout=BOOT_SECONDS,
            until=lambda state: state == "running",
        )
        yield node


def _furnish(directory: str) -> None:
    root = f"{directory}/root"
    for name in ("etc/containerd", "etc/systemd/system/multi-user.target.wants", "etc/cni/net.d", "var/lib", "var/log"):
        os.makedirs(f"{root}/{name}")
    for name in ("var/tmp", "var/cache", "root", "opt"):
        os.makedirs(f"{root}/{name}")
    os.makedirs(f"{root}.local/bin")
    os.symlink("/run", f"{root}/var/run")
    for name in _MACHINES:
        if os.path.isdir(f"/etc/{name}"):
            shutil.copytree(f"/etc/{name}", f"{root}/etc/{name}", symlinks=True)
        elif os.path.exists(f"/etc/{name}"):
            shutil.copy2(f"/etc/{name}", f"{root}/etc/{name}")
    units = "etc/systemd/system"
    for name, text in (
        ("etc/fstab", ""),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("etc/resolv.conf", ""),
        ("etc/containerd/config.toml", CONTAINERD_CONFIG),
        ("etc/cni/net.d/10-pods.conflist", _NETWORK),
        (f"{units}/containerd.service", CONTAINERD_UNIT),
    ):
        with open(f"{root}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    os.symlink("/etc/systemd/system/containerd.service", f"{root}/{units}/multi-user.target.wants/containerd.service")


@contextmanager
def _unshared(directory: str, cgroup: str) -> Iterator[None]:
    """The process that waits for systemd, from within cgroups of the node's own."""
    join = "; ".join(f"echo $$ >{path}/cgroup.procs" for path in _make_cgroup(cgroup))
    spaces = "--mount --pid --fork --uts --ipc --net --cgroup"
    script = f'{join}; exec unshare {spaces} {CHECKOUT}/tests/e2e/boot.sh "$0/root" {CHECKOUT}'
    with (
        open(f"{directory}/console", "wb") as console,
        subprocess.Popen(
            ["sh", "-ec", script, directory], stdin=subprocess.DEVNULL, stdout=console, stderr=console
        ) as waiting,
    ):
        with open(f"{directory}/waiting", "w", encoding="ascii") as file:
            file.write(str(waiting.pid))
        try:
            yield
        finally:
            # process 1 of the node: with it the kernel ends all others, and then the one who waits for it ends
            for pid in _children(waiting.pid) or [waiting.pid]:
                os.kill(pid, signal.SIGKILL)
            waiting.wait(BOOT_SECONDS)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def _process_1(directory: str) -> int:
    with open(f"{directory}/waiting", encoding="ascii") as file:
        waiting = int(file.read())

    def child() -> int:
        for pid in _children(waiting):
            with open(f"/proc/{pid}/comm", encoding="ascii") as file:
                return pid if file.read().strip() == "systemd" else 0
        return 0

    try:
        return eventually(child, "systemd is process 1", timeout=BOOT_SECONDS)
    except (AssertionError, OSError) as exc:
        with open(f"{directory}/console", encoding="utf-8", errors="replace") as console:
            raise AssertionError(f"the node does not boot:\n{console.read()}") from exc


def _make_cgroup(name: str) -> list[str]:
    directories = current().directories(name)
    for directory in directories:
        os.mkdir(directory)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{directory}/{setting}") and current().version == 1:
                with (
                    open(f"{os.path.dirname(directory)}/{setting}") as parent,
                    open(f"{directory}/{setting}", "w") as own,
                ):
                    own.write(parent.read())
    return directories


def _remove_cgroup(name: str) -> None:
    for top in current().directories(name):
        eventually(lambda top=top: _is_removed(top), f"{top} is empty")  # type: ignore[misc]  # default binds the name


def _is_removed(top: str) -> bool:
    for directory, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:
            return False
    return True
