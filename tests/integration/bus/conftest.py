"""Real workers in processes of their own, and raw sockets that speak to either side what no peer of ours would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


class Stage:
    """An address, a directory, and the processes started on it; all of them end with the test."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.directory = directory
        self.socket = f"{directory}/bus.sock"
        self.address = f"ipc://{self.socket}"
        self._stack = stack

    def start(self, module: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Run ``python -m module arguments…`` until the end of the test."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
        )
        self._stack.callback(end, process)
        return process

    def worker(self, sandbox: str, generation: int = 1) -> subprocess.Popen[bytes]:
        """A worker process."""
        return self.start("tests.integration.bus.worker", self.address, sandbox, generation, self.directory)

    def workers(self, prefix: str, count: int) -> subprocess.Popen[bytes]:
        """Many workers, forked off one process."""
        return self.start("tests.integration.bus.worker", "--fork", self.address, prefix, count, self.directory)

    def lines(self, name: str) -> list[str]:
        """What the workers have written into a file of the directory."""
        try:
            return Path(self.directory, name).read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return []


def end(process: subprocess.Popen[bytes]) -> None:
    """Let it end by the end of its input if it minds that, else by force."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.send_signal(signal.SIGCONT)
    if "--fork" not in process.args:  # type: ignore[operator]  # a list of strings, as we made it
        process.kill()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    # Not tmp_path: a unix socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="kuasar-bus-") as directory, ExitStack() as stack:
        yield Stage(directory, stack)
