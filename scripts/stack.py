"""Starts and stops a stack: supervisord with gateway, zygote, workers and a containerd of its own, as ``Layout`` says.

``python -m scripts.stack start|stop|status`` is what the Makefile runs; tests and benchmarks use :class:`Stack` with a
layout of their own. supervisord runs in the background and outlives the caller; a second start finds it running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from rich.console import Console
from supervisor.xmlrpc import SupervisorTransport

from kuasar.cli.cri import CriClient, CriError
from kuasar.cli.images import PAUSE, Image, busybox_image, pause_image, write_archive
from kuasar.core.config import load
from scripts import leftovers
from scripts.layout import CHECKOUT, CONTAINERD_BIN, GUEST_IMAGE, Layout, render, runtimes, search_path
from scripts.leftovers import Before, Leftover

START_SECONDS = 60.0
SCRATCH_BYTES = 64 << 20
_PROGRAMS = ("zygote", "keeper", "gateway", "containerd")

Say = Callable[[str], None]


class StackError(Exception):
    """The stack cannot be started; the message ends with what its logs say."""


def _quiet(_: str) -> None:
    pass


class Stack:
    """One stack. Methods block; not for several threads at once."""

    def __init__(self, layout: Layout, say: Say = _quiet) -> None:
        self.layout = layout
        self._say = say

    # --- life

    def start(self) -> None:
        """Start what does not run, wait until pods can be run, and import the base images. Raises StackError."""
        if os.geteuid() != 0:
            raise StackError("root is needed: pods are made of namespaces, mounts and cgroups")
        if not self.layout.foreign_containerd and not os.path.exists(f"{CONTAINERD_BIN}/containerd"):
            raise StackError("containerd is not here yet: scripts/fetch-containerd.sh fetches it")
        if self.is_running():
            self._require_ours()
            self._say("supervisord runs already")
        else:
            also = "" if self.layout.foreign_containerd else ", containerd"
            self._say(f"starting supervisord with zygote, keeper, gateway{also}")
            os.makedirs(self.layout.run, mode=0o700, exist_ok=True)
            Before.note(self._before)
            render(self.layout, PAUSE)
            self._make_scratch()
            self._run("-m", "kuasar.supervisor.render", "--config", self.layout.config)
            self._run("-m", "supervisor.supervisord", "-c", self.layout.supervisord_conf)
        self.wait_ready()
        self._make_template()
        if not self.layout.foreign_containerd:
            for image in (busybox_image(), pause_image()):
                self.add_image(image)

    def _make_scratch(self) -> None:
        """What containerd's blockfile snapshotter copies; it takes its place under its name only when it is whole."""
        if os.path.exists(self.layout.scratch):
            return
        part = f"{self.layout.scratch}.part"
        with open(part, "wb") as file:
            file.truncate(SCRATCH_BYTES)
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", part], env={"PATH": search_path()}, stdin=subprocess.DEVNULL, check=True
        )
        os.rename(part, self.layout.scratch)

    def _make_template(self) -> None:
        """What the first machines would do in the background, so that they, too, start as clones."""
        if not os.path.exists(f"{GUEST_IMAGE}/image.json"):
            self._say("no guest image: pods in virtual machines are not possible (make guest)")
            return
        self._say("the template of virtual machines")
        done = subprocess.run(
            [sys.executable, "-m", "kuasar.backends.qemu.maker", "--config", self.layout.config],
            env={"PATH": search_path(), "LANG": "C.UTF-8"},
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise StackError("the template of virtual machines could not be made: see above")

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until the gateway listens and containerd says that runtime and network are ready. Raises StackError."""
        deadline = time.monotonic() + seconds
        self._wait_listening("gateway", self.layout.gateway_socket, deadline)
        self._wait_listening("containerd", self.layout.containerd_socket, deadline)
        with CriClient(self.layout.containerd_socket, timeout=5) as cri:
            self._wait_until(lambda: not _not_ready(cri), deadline, lambda: f"containerd: {_not_ready(cri)}")
            missing = runtimes(self.layout) - {handler.name for handler in cri.runtime_status().runtime_handlers}
        if missing:
            drop_in = f"{self.layout.run}/containerd-kuasar.toml"
            hint = f"name {drop_in} in `imports` of its configuration and restart it"
            raise StackError(f"this containerd has no runtime {' and no '.join(sorted(missing))}: {hint}")

    def stop(self) -> list[Leftover]:
        """Remove the pods, end all processes, free everything; gives what the stack itself had failed to free.

        Harmless when nothing runs. Raises StackError when it is the stack of another checkout.
        """
        if self.is_running():
            self._require_ours()
        pods, are_removed = self._remove_pods()
        self._say("stopping supervisord and what it runs")
        leftovers.end_processes(self._supervisord(), signal.SIGTERM, seconds=30)
        # children of supervisord die with it, but not in the same instant
        leftovers.end_processes(leftovers.processes(self.layout), 0, seconds=2)
        left = leftovers.find(self.layout, pods)
        leftovers.remove(self.layout, left)
        leftovers.unmount_layers(self.layout)
        if not are_removed and os.path.exists(
            self._before
        ):  # its database tells of pods that are no more; the images are imported again
            shutil.rmtree(self.layout.containerd_root, ignore_errors=True)
        left = [leftover for leftover in left if not self._was_expected(leftover)]
        Before.restore(self._before)
        shutil.rmtree(self.layout.run, ignore_errors=True)
        return left

    def is_running(self) -> bool:
        """Whether supervisord answers."""
        try:
            self._rpc().supervisor.getState()
        except OSError:
            return False
        return True

    # --- what runs

    def programs(self) -> list[dict[str, Any]]:
        """supervisord's process table: workers and the others."""
        table: list[dict[str, Any]] = self._rpc().supervisor.getAllProcessInfo()  # type: ignore[assignment]  # untyped RPC
        return table

    def pid(self, program: str) -> int:
        """The process of ``zygote``, ``gateway``, ``containerd`` or of ``sandbox:<id>``; 0 if it does not run."""
        info: dict[str, Any] = self._rpc().supervisor.getProcessInfo(program)  # type: ignore[assignment]  # untyped RPC
        return int(info["pid"])

    def supervisord_pid(self) -> int:
        """What supervisord wrote down of itself. Raises FileNotFoundError where none was started."""
        with open(f"{self.layout.run}/supervisord.pid", encoding="ascii") as file:
            return int(file.read())

    def restart(self, program: str) -> None:
        """Stop and start a program the way an operator does, and wait until the stack is ready."""
        rpc = self._rpc()
        rpc.supervisor.stopProcess(program)
        rpc.supervisor.startProcess(program)
        self.wait_ready()

    def ctr(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run containerd's own client in CRI's namespace and give its output. Raises StackError."""
        argv = [_ctr(), "--address", self.layout.containerd_socket, "--namespace", "k8s.io", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise StackError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    # --- images

    def add_image(self, image: Image) -> None:
        """Build and import."""
        path = f"{self.layout.images}/{image.name.replace('/', '_')}.tar"
        write_archive(image, path)
        self.import_image(path)

    def import_image(self, path: str) -> None:
        """Import an OCI archive and wait until CRI knows it. Raises StackError."""
        names = _names(path)
        self._say(f"importing {', '.join(names)}")
        self.ctr("images", "import", path)
        deadline = time.monotonic() + 10
        with CriClient(self.layout.containerd_socket) as cri:  # it hears of images by an event
            for name in names:
                self._wait_until(
                    lambda name=name: cri.image_status(name) is not None,  # type: ignore[misc]  # default binds the name
                    deadline,
                    lambda name=name: f"containerd: image {name} was imported, but CRI does not know it",  # type: ignore[misc]
                )

    # --- inside

    @property
    def _before(self) -> str:
        return f"{self.layout.run}/before.json"

    def _require_ours(self) -> None:
        """The directory in /run is the same for all checkouts."""
        logs = load(self.layout.config).log_dir
        if logs != self.layout.logs:
            raise StackError(f"the stack of another checkout runs; its logs are in {logs}")

    def _rpc(self) -> xmlrpc.client.ServerProxy:
        transport = SupervisorTransport(None, None, f"unix://{self.layout.run}/supervisor.sock")
        return xmlrpc.client.ServerProxy("http://localhost", transport=transport)

    def _run(self, *arguments: str) -> None:
        if "--config" in arguments:
            template = f"{CHECKOUT}/etc/supervisord.conf"
            arguments = (*arguments, "--template", template, "--output", self.layout.supervisord_conf)
        done = subprocess.run(
            [sys.executable, *arguments],
            env={"PATH": search_path(), "LANG": "C.UTF-8"},
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StackError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")

    def _supervisord(self) -> list[int]:
        try:
            pid = self.supervisord_pid()
        except (FileNotFoundError, ValueError):
            return []
        return [pid] if pid in leftovers.processes(self.layout) else []

    def _remove_pods(self) -> tuple[set[str], bool]:
        """Remove all pods, several at a time; gives the ids of pods and containers there were, and whether all went."""
        known = set(leftovers.listed(f"{self.layout.run}/sandboxes"))
        with CriClient(self.layout.containerd_socket, timeout=30) as cri:
            try:
                pods = [pod.id for pod in cri.list_pods(labels=self._labels())]
                known |= {*pods, *(container.id for container in cri.list_containers(labels=self._labels()))}
            except CriError:
                return known, False  # containerd does not run: what is left of its pods is found by its marks
            if pods:
                self._say(f"removing {len(pods)} pod{'' if len(pods) == 1 else 's'}")
            with ThreadPoolExecutor(8) as pool:
                failures = [failure for failure in pool.map(lambda pod: _remove_pod(cri, pod), pods) if failure]
        for failure in failures:
            self._say(failure)
        return known, not failures

    def _labels(self) -> dict[str, str]:
        """In a containerd of others only the demonstration's pods are ours."""
        return DEMO_LABELS if self.layout.foreign_containerd else {}

    def _was_expected(self, leftover: Leftover) -> bool:
        """The common parent of the pods' cgroups is nobody's to remove but ours."""
        return leftover.kind == "cgroup" and leftover.name == self.layout.cgroup_parent

    def _wait_listening(self, what: str, path: str, deadline: float) -> None:
        options = [
            ("grpc.default_authority", "localhost"),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 50),
        ]
        with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
            try:
                grpc.channel_ready_future(channel).result(max(0.0, deadline - time.monotonic()))
            except grpc.FutureTimeoutError:
                raise self._failure(f"{what} does not listen on {path}") from None

    def _wait_until(self, true: Callable[[], bool], deadline: float, problem: Callable[[], str]) -> None:
        pause = threading.Event()
        while not true():
            if time.monotonic() > deadline:
                raise self._failure(problem())
            pause.wait(0.02)

    def _failure(self, problem: str) -> StackError:
        lines = [problem]
        if self.is_running():
            lines += [f"{info['name']}: {info['statename']} {info['description']}" for info in self.programs()]
        for program in ("supervisord", *_PROGRAMS):
            tail = _tail(f"{self.layout.logs}/{program}.log")
            lines += [f"--- {program}.log", tail] if tail else []
        return StackError("\n".join(lines))


DEMO_LABELS = {"kuasar/demo": "true"}


def developers_layout(containerd: str = "") -> Layout:
    """That of ``make run``; a stack that was started with a containerd of others still has it."""
    layout = Layout(foreign_containerd=containerd)
    if containerd or not os.path.exists(layout.config):
        return layout
    used = load(layout.config).containerd.events.removesuffix(".ttrpc")
    return layout if used == layout.containerd_socket else Layout(foreign_containerd=used)


def _remove_pod(cri: CriClient, pod: str) -> str:
    try:
        cri.stop_pod(pod)
        cri.remove_pod(pod)
    except CriError as error:
        return f"pod {pod}: {error}"
    return ""


def _not_ready(cri: CriClient) -> str:
    """Why no pod can be run yet; empty when it can."""
    try:
        conditions = cri.runtime_status().status.conditions
    except CriError as error:
        return str(error)
    needed = [condition for condition in conditions if condition.type in ("RuntimeReady", "NetworkReady")]
    return "; ".join(f"{c.type}: {c.reason} {c.message}" for c in needed if not c.status)


def _ctr() -> str:
    ours = f"{CONTAINERD_BIN}/ctr"
    return ours if os.path.exists(ours) else "ctr"


def _names(path: str) -> list[str]:
    with tarfile.open(path) as archive:
        index = archive.extractfile("index.json")
        if index is None:
            raise StackError(f"{path}: index.json is not a file")
        manifests = json.load(index)["manifests"]
    return [manifest["annotations"]["io.containerd.image.name"] for manifest in manifests]


def _tail(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-8:]).rstrip()
    except FileNotFoundError:
        return ""


@contextmanager
def running(layout: Layout, say: Say = _quiet) -> Iterator[Stack]:
    """A stack that is started and stopped again. What it left is told through ``say``."""
    stack = Stack(layout, say)
    try:
        stack.start()
        yield stack
    finally:
        for leftover in stack.stop():
            say(f"left over: {leftover}")


def main() -> int:
    """The command. Exit codes: 0 done, 1 failed or something could not be removed, 2 wrong command line."""
    parser = argparse.ArgumentParser(prog="stack", description="the project's own stack")
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--containerd", default="", metavar="SOCKET", help="use this containerd instead of our own")
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    layout = developers_layout(options.containerd)
    stack = Stack(layout, lambda text: console.print(f"[bold blue]==>[/] {text}"))
    try:
        if options.action == "start":
            stack.start()
        elif options.action == "stop":
            return _report(stack, console)
        elif not stack.is_running():
            console.print("the stack does not run: make run starts it")
            return 1
        else:
            for info in stack.programs():
                name = info["name"] if info["name"] == info["group"] else f"{info['group']}:{info['name']}"
                print(f"{name:75} {info['statename']:10} {info['description']}")
    except StackError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    return 0


def _report(stack: Stack, console: Console) -> int:
    left = stack.stop()
    for leftover in left:
        console.print(f"was left over, and removed: {leftover}", style="yellow", markup=False)
    again = leftovers.find(stack.layout)
    for leftover in again:
        console.print(f"cannot be removed: {leftover}", style="red", markup=False)
    if not left and not again:
        console.print("stopped; nothing is left: no process, mount, network namespace, interface or cgroup")
    return 1 if again else 0


if __name__ == "__main__":
    sys.exit(main())
