"""``make run``: pods of namespaces, of WebAssembly and of a virtual machine through CRI, as Kubernetes would run them.

Needs the stack started. Leaves the pods running, so that there is something to look at; the next run replaces them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import wasmtime
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kuasar.api.gen.cri.v1 import container_pb2
from kuasar.cli.cri import CriClient, CriError, container_config, pod_config
from kuasar.cli.images import BUSYBOX, busybox_image, wasm_image
from scripts.layout import CHECKOUT
from scripts.stack import DEMO_LABELS, Stack, StackError, developers_layout

WASM = "localhost/kuasar/hello:1"
_SERVER = 'echo "Hello from $(hostname), process $$, $(id -un)."; while :; do sleep 3600 & wait $!; done'
_MACHINE = 'echo "Hello from $(hostname), Linux $(uname -r), $(grep MemTotal /proc/meminfo)."; sleep 3600'
_WAIT_SECONDS = 60.0


@dataclass
class Shown:
    """A pod that runs, and what there is to see of it."""

    title: str
    handler: str
    pod: str = ""
    container: str = ""
    seconds: float = 0.0
    log: str = ""


class Demo:
    """The steps, in order. Each raises CriError or StackError."""

    def __init__(self, stack: Stack, cri: CriClient, console: Console) -> None:
        self.stack = stack
        self.cri = cri
        self.console = console
        self.pods = [
            Shown("a pod of namespaces", "kuasar-runc"),
            Shown("a pod of WebAssembly", "kuasar-wasmtime"),
            Shown("a pod in a virtual machine", "kuasar-qemu"),
        ]
        self.steps = (
            ("building and importing images", self.images),
            ("removing the pods of the last run", self.clear),
            ("running a pod of namespaces", lambda: self.run(self.pods[0], BUSYBOX, ["sh", "-c", _SERVER], [])),
            ("running a pod of WebAssembly", lambda: self.run(self.pods[1], WASM, [], ["one", "two", "three"])),
            ("running a pod in a virtual machine", lambda: self.run(self.pods[2], BUSYBOX, ["sh", "-c", _MACHINE], [])),
            ("waiting for their output", self.logs),
        )

    def images(self) -> None:
        """Everything that is run is built here; no registry is asked."""
        with open(f"{CHECKOUT}/scripts/wasm/hello.wat", encoding="utf-8") as file:
            module = bytes(wasmtime.wat2wasm(file.read()))
        self.stack.add_image(wasm_image(module, WASM, file_name="hello.wasm"))
        if self.stack.layout.foreign_containerd:
            self.stack.add_image(busybox_image())

    def clear(self) -> None:
        """Pods have fixed names."""
        for pod in self.cri.list_pods(labels=DEMO_LABELS):
            self.cri.stop_pod(pod.id)
            self.cri.remove_pod(pod.id)

    def run(self, shown: Shown, image: str, command: list[str], args: list[str]) -> None:
        """RunPodSandbox, CreateContainer, StartContainer."""
        layout = self.stack.layout
        config = pod_config(
            shown.handler.removeprefix("kuasar-") + "-demo",
            log_directory=f"{layout.logs}/pods/{shown.handler}",
            labels=DEMO_LABELS,
            cgroup_parent=layout.cgroup_parent,
        )
        log = f"{layout.logs}/pods/{shown.handler}/main_0.log"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)
        started = time.monotonic()
        shown.pod = self.cri.run_pod(config, shown.handler)
        container = container_config("main", image, command, args, labels=DEMO_LABELS)
        shown.container = self.cri.create_container(shown.pod, container, config)
        self.cri.start(shown.container)
        shown.seconds = time.monotonic() - started
        shown.log = log

    def logs(self) -> None:
        """Until all have said something, and the Wasm program has ended."""
        deadline = time.monotonic() + _WAIT_SECONDS
        for shown in self.pods:
            while not self._has_spoken(shown):
                if time.monotonic() > deadline:
                    raise StackError(f"{shown.title}: container {shown.container} said nothing; see {shown.log}")
                threading.Event().wait(0.02)

    def _has_spoken(self, shown: Shown) -> bool:
        status = self.cri.status(shown.container).status
        if shown.handler == "kuasar-wasmtime" and status.state == container_pb2.CONTAINER_RUNNING:
            return False
        return bool(_output(shown.log))

    def show(self) -> None:
        """What there is to see, with the command that shows it."""
        for shown in self.pods:
            self._head(f"{shown.title}: handler {shown.handler}, {shown.seconds * 1000:.0f} ms from nothing to running")
            status = self.cri.status(shown.container).status
            state = container_pb2.ContainerState.Name(status.state).removeprefix("CONTAINER_").lower()
            if status.state == container_pb2.CONTAINER_EXITED:
                state += f" with code {status.exit_code}"
            address = self.cri.pod_status(shown.pod).status.network.ip
            self._line(f"pod {shown.pod[:13]} {address}, container {shown.container[:13]}: {state}; its output:")
            self._text(_output(shown.log))
        self._head("a command in the running container")
        command = ["sh", "-c", "ps; cat /etc/hostname; ip -4 -o addr show eth0"]
        self._text(self.cri.exec_sync(self.pods[0].container, command).stdout.decode())
        layout = self.stack.layout
        supervisorctl = (
            f"{os.path.relpath(f'{os.path.dirname(sys.executable)}/supervisorctl')} -c {layout.supervisord_conf}"
        )
        self._head(f"{supervisorctl} status")
        argv = [sys.executable, "-m", "supervisor.supervisorctl", "-c", layout.supervisord_conf, "status"]
        self._text(subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout)
        bin_dir = os.path.relpath(os.path.dirname(sys.executable))
        kuasarctl = f"{bin_dir}/kuasarctl --config {layout.config}"
        self._head(f"{kuasarctl} ps")
        argv = [sys.executable, "-m", "kuasar.cli.ctl.main", "--config", layout.config, "ps"]
        self._text(subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout)
        self._head("where to look further")
        for what, command_line in (
            ("a start's time", f"{kuasarctl} timings {self.pods[0].pod[:13]}"),
            ("the node", f"{kuasarctl} doctor"),
            ("a pod's worker", f"{supervisorctl} tail -f sandbox:{self.pods[0].pod}"),
            ("all logs", os.path.relpath(layout.logs)),
            ("per sandbox", os.path.relpath(f"{layout.logs}/sandboxes")),
            ("the end", "make stop"),
        ):
            self.console.print(f"  {what:15} [cyan]{escape(command_line)}[/]")

    def _head(self, text: str) -> None:
        self.console.print(f"\n[bold]{escape(text)}[/]")

    def _line(self, text: str) -> None:
        self.console.print(f"  {escape(text)}")

    def _text(self, text: str) -> None:
        for line in text.splitlines():
            self.console.print(f"  [green]|[/] {escape(line)}")


def _output(path: str) -> str:
    """A container's output, without what CRI puts before each line: time, stream and whether it is whole."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "\n".join(line.rstrip("\n").split(" ", 3)[-1] for line in file)
    except FileNotFoundError:
        return ""


def main() -> int:
    """The command. Exit codes: 0 all pods ran, 1 something failed."""
    parser = argparse.ArgumentParser(
        prog="demo", description="run a pod of namespaces, of WebAssembly and of a virtual machine"
    )
    parser.add_argument("--containerd", default="", metavar="SOCKET", help="use this containerd instead of our own")
    stack = Stack(developers_layout(parser.parse_args().containerd))
    console = Console(highlight=False, soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with CriClient(stack.layout.containerd_socket) as cri:
        demo = Demo(stack, cri, console)
        try:
            with Progress(*columns, console=console) as progress:
                task = progress.add_task("", total=len(demo.steps))
                for title, step in demo.steps:
                    progress.update(task, description=title)
                    step()
                    progress.advance(task)
                progress.update(task, description="done")
            demo.show()
        except (CriError, StackError, OSError) as error:
            console.print(str(error), style="red", markup=False)
            console.print(f"logs: {stack.layout.logs}", markup=False)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
