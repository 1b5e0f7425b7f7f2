"""A real worker on a real bus, with a real zygote and agent, in a directory of its own. No gateway, no supervisord."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from kuasar.agent import kernel
from kuasar.bus.messages import Hello
from kuasar.bus.router import BusRouter
from kuasar.core.errors import Unavailable
from kuasar.core.records import unseal
from kuasar.core.trees import mounts_below
from kuasar.supervisor.keeper_client import Keeper
from tests import failpoints
from tests.deadline import SLOWNESS

T = TypeVar("T")
SECONDS = 20.0 * SLOWNESS
BUSYBOX = "/usr/bin/busybox"
CHECKOUT = Path(__file__).parents[3]


def run(scenario: Coroutine[Any, Any, T], seconds: float = 90) -> T:
    """Run one scenario to its end, with a deadline."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds * SLOWNESS):
            return await scenario

    return asyncio.run(bounded())


class Rig:
    """Starts and replaces workers of sandbox ``pod1`` and calls them over the bus."""

    def __init__(self, root: Path, state_kib: int = 0) -> None:
        self.root = root
        self.sandbox = "pod1"
        self.config = root / "kuasar.toml"
        self.directory = root / "state" / "sandboxes" / self.sandbox
        self.log = root / "worker.log"
        self.worker_module = "kuasar.workers.main"
        self.hellos: asyncio.Queue[Hello] = asyncio.Queue()
        self.events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.seconds = SECONDS
        """What a request may take."""
        self._keys = 0
        self._is_tiny = False
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "state/sandboxes", "log", "log/sandboxes", "cache"):
            (root / name).mkdir(mode=0o700)
            if name == "state" and state_kib:
                kernel.mount("tmpfs", str(root / name), "tmpfs", 0, f"size={state_kib}k,mode=0700")
                self._is_tiny = True
        self.config.write_text(
            f'state_dir = "{root}/state"\nlog_dir = "{root}/log"\ncache_dir = "{root}/cache"\nlog_level = "debug"\n'
            f'[gateway]\nsocket = "{root}/g"\n[supervisor]\nsocket = "{root}/s"\nzygote = "{root}/z"\n'
            f'keeper = "{root}/k"\n[sandboxers.kuasar-runc]\nengine = "runc"\n'
            "[debug]\nfailpoints = true\n[engines.runc]\n[engines.wasmtime]\n"
            f'[engines.gvisor]\nbinary = "{CHECKOUT}/.kuasar/runsc/usr/bin/runsc"\n'
            '[engines.broken]\nkind = "runc"\nbinary = "/nonexistent/runc"\n'
            f'[engines.qemu]\nimage = "{CHECKOUT}/.kuasar/guest/image"\ncache_dir = "{CHECKOUT}/.kuasar/qemu"\n'
        )
        self.router = BusRouter(f"ipc://{root}/state/bus.sock")
        self.router.on_hello = self.hellos.put_nowait
        self.router.on_event = lambda sandbox, topic, body: self.events.put_nowait((topic, body))

    def rename(self, sandbox: str) -> None:
        """Go on with another sandbox, after the one before is gone."""
        self.sandbox = sandbox
        self.directory = self.root / "state" / "sandboxes" / sandbox

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    async def start_zygote(self) -> subprocess.Popen[bytes]:
        """A zygote that answers."""
        process = self._start("-m", "kuasar.supervisor.zygote", "--config", str(self.config))
        await self.until((self.root / "z").exists)
        return process

    async def start_keeper(self) -> subprocess.Popen[bytes]:
        """A keeper that answers."""
        process = self._start("-m", "kuasar.supervisor.keeper", "--config", str(self.config))
        keeper = Keeper(f"{self.root}/k")
        await self.until(lambda: _answers(keeper))
        keeper.close()
        return process

    def spawn_worker(self) -> subprocess.Popen[bytes]:
        """A worker that may not come to greet."""
        return self._start("-m", self.worker_module, "--config", str(self.config), "--sandbox", self.sandbox)

    async def start_worker(self) -> tuple[subprocess.Popen[bytes], Hello]:
        """A worker that has greeted."""
        process = self.spawn_worker()
        return process, await asyncio.wait_for(self.hellos.get(), SECONDS)

    def kill_worker(self) -> None:
        """Kill the worker that was started last, and everything else stays."""
        worker = next(each for each in reversed(self._processes) if self.worker_module in each.args)  # type: ignore[operator]  # a list of words
        worker.kill()
        worker.wait()

    async def until(self, condition: Any, seconds: float = SECONDS) -> None:
        """Wait for a condition of the file system or a process, with a deadline."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"in vain: {self.tail()}"
            await asyncio.sleep(0.01)

    async def call(self, op: str, key: str | None = None, **body: Any) -> dict[str, Any]:
        """A request; keyed unless it only reads."""
        if key is None:
            self._keys += 1
            key = f"k{self._keys}"
        return await self.router.call(self.sandbox, op, body, key=key, deadline=time.monotonic() + self.seconds)

    async def create(self, **changes: Any) -> None:
        """``sandbox.create`` of a host-network pod."""
        pod = {"name": "pod1", "hostname": "pod1", "host_network": True, "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
        body: dict[str, Any] = {
            "namespace": "k8s.io",
            "sandboxer": "kuasar-runc",
            "engine": "runc",
            "netns": "",
            "bundle": "",
        }
        await self.call("sandbox.create", **({**body, "config": pod, **changes}))

    def bundle(self, container: str, command: str, **spec: Any) -> str:
        """A bundle whose process is a shell with ``command``."""
        bundle = self.root / "bundles" / container
        shutil.rmtree(bundle, ignore_errors=True)
        rootfs = bundle / "image"
        (rootfs / "bin").mkdir(parents=True)
        for directory in ("proc", "dev", "sys", "etc", "tmp"):
            (rootfs / directory).mkdir()
        shutil.copy(BUSYBOX, rootfs / "bin" / "sh")
        namespaces = [{"type": name} for name in ("pid", "mount")]
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/sh", "-c", command],
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": namespaces, "cgroupsPath": f"/kuasar-test-{os.getpid()}/{container}"},
        }
        (bundle / "config.json").write_text(json.dumps(config | spec))
        return str(bundle)

    async def create_container(self, container: str, command: str, stdout: str = "", **changes: Any) -> dict[str, Any]:
        """``task.create`` of a container that runs ``command`` in a shell."""
        bundle = self.bundle(container, command)
        rootfs = [{"type": "bind", "source": f"{bundle}/image", "target": "", "options": ["rbind", "rw"]}]
        body: dict[str, Any] = {
            "bundle": bundle,
            "rootfs": rootfs,
            "terminal": False,
            "stdin": "",
            "stdout": stdout,
            "stderr": "",
        }
        return await self.call("task.create", id=container, **(body | changes))

    def record(self) -> dict[str, Any]:
        """The sandbox's record as it lies on disk."""
        return unseal((self.directory / "sandbox.msgpack").read_bytes())

    def arm(self, point: str, action: str) -> None:
        """Arm a failpoint in all processes of this rig."""
        failpoints.arm(self.root / "state" / "failpoints", point, action)

    def disarm(self, point: str) -> None:
        """Harmless when it is not armed."""
        failpoints.disarm(self.root / "state" / "failpoints", point)

    def hits(self, point: str) -> int:
        """How often an armed failpoint was hit."""
        return failpoints.hits(self.root / "state" / "failpoints", point)

    def machine_processes(self) -> dict[int, str]:
        """Pid and command line of what runs for the sandbox beside its worker: agent, VMM, virtiofsd. They all write to
        its log."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    if os.readlink(f"/proc/{entry}/fd/1").startswith(f"{self.root}/log/sandboxes/"):
                        found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")
        return found

    def cgroups(self, name: str = "") -> list[str]:
        """Every cgroup of that name below the rig's, in any hierarchy."""
        below = f"kuasar-test-{os.getpid()}/{name or f'kuasar-{self.sandbox}'}"
        return [str(path) for pattern in (below, f"*/{below}") for path in Path("/sys/fs/cgroup").glob(pattern)]

    def mounts(self) -> list[str]:
        """Mount points below the sandbox's directory."""
        return mounts_below(str(self.directory))

    async def nothing_held(self) -> None:
        """Wait until nothing of the machine is there: no process, cgroup, mount, socket, and no name in the record."""

        def left() -> list[object]:
            sockets = [str(path) for path in self.directory.glob("*.sock")] if self.directory.exists() else []
            holdings = self.record()["holdings"] if (self.directory / "sandbox.msgpack").exists() else []
            return [*self.machine_processes().values(), *self.cgroups(), *self.mounts(), *sockets, *holdings]

        deadline = time.monotonic() + SECONDS
        while found := left():
            assert time.monotonic() < deadline, f"still there: {found}"
            await asyncio.sleep(0.01)

    def tail(self) -> str:
        """The end of the worker's log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "(no log)"

    async def close(self) -> None:
        """End what was started, by pid."""
        await self.router.close()
        for pid in self.machine_processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait()
        with suppress(AssertionError):
            await self.until(lambda: not self.machine_processes(), 5.0)
        self._remove_cgroups()
        for path in mounts_below(f"{self.root}/state/sandboxes"):  # of a test that failed: else its error is not seen
            kernel.umount(path)
        if self._is_tiny:
            kernel.umount(f"{self.root}/state")

    def _remove_cgroups(self) -> None:
        """The pod's parent cgroup is the rig's, as it would be kubelet's."""
        parent = f"kuasar-test-{os.getpid()}"
        for pattern in (f"{parent}/*", parent, f"*/{parent}/*", f"*/{parent}"):
            for path in Path("/sys/fs/cgroup").glob(pattern):
                if path.is_dir():
                    path.rmdir()


def _answers(keeper: Keeper) -> bool:
    try:
        keeper.list("")
    except Unavailable:
        return False
    return True


R = TypeVar("R", bound=Rig)


@asynccontextmanager
async def rig(state_kib: int = 0) -> AsyncIterator[Rig]:
    """A started rig, without worker and zygote; with ``state_kib`` its state directory is a disk of that size."""
    async with started(Rig, state_kib) as made:
        yield made


@asynccontextmanager
async def started(kind: type[R], state_kib: int = 0) -> AsyncIterator[R]:
    """Likewise, of a kind."""
    with tempfile.TemporaryDirectory(prefix="kw", dir="/run") as root:
        made = kind(Path(root), state_kib)
        await made.router.start()
        try:
            yield made
        except BaseException:
            sys.stderr.write(made.tail())
            raise
        finally:
            await made.close()
