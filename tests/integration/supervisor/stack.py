"""A real supervisord on a directory of its own, and what the tests need to look at it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kuasar.core.config import Config, load
from kuasar.supervisor import render
from kuasar.supervisor.client import SupervisorClient
from tests.integration.supervisor.tiny import control_path

ROOT = Path(__file__).parents[3]
PATIENCE = 20.0
"""Deadline in seconds of whatever must happen; generous, as other things may run on this machine."""


LOG_BYTES = 65536


class Peer:
    """One tiny worker or agent that has greeted."""

    def __init__(self, connection: socket.socket, facts: dict[str, Any]) -> None:
        self._connection = connection
        self.facts = facts
        # as this pid namespace sees it
        self.pid: int = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)

    def tell(self, command: str) -> None:
        self._connection.send(command.encode())

    def ask(self, command: str) -> str:
        self.tell(command)
        answer = self._connection.recv(65536)
        assert answer, f"{self.facts['name']} died of {command!r}"
        return answer.decode()

    def wait_end(self) -> None:
        """Until the process has closed its end, which it does by dying."""
        with suppress(ConnectionResetError):
            assert self._connection.recv(1) == b""

    def close(self) -> None:
        self._connection.close()


class Control:
    """Where the tiny processes greet."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(256)
        self._waiting: list[Peer] = []
        self._known: list[Peer] = []

    def next(self, name: str, patience: float = PATIENCE) -> Peer:
        """The next greeting of ``name``."""
        deadline = time.monotonic() + patience
        while True:
            for peer in self._waiting:
                if peer.facts["name"] == name:
                    self._waiting.remove(peer)
                    return peer
            self._listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                raise AssertionError(f"{name} did not greet within {patience} s") from None
            connection.settimeout(PATIENCE)
            peer = Peer(connection, json.loads(connection.recv(65536)))
            self._known.append(peer)
            self._waiting.append(peer)

    def close(self) -> None:
        self._listener.close()
        for peer in self._known:
            peer.close()


class Daemon:
    """A supervisord in the foreground, its log read line by line."""

    def __init__(self, conf: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", conf],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._read = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self.lines.append("<end of log>")
            self._changed.notify_all()

    def wait_line(self, pattern: str) -> str:
        """The next line that matches and was not looked at before."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                while self._read < len(self.lines):
                    line = self.lines[self._read]
                    self._read += 1
                    if re.search(pattern, line):
                        return line
                assert self._changed.wait(deadline - time.monotonic()), f"no {pattern!r} in the log:\n{self.log}"

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_end(self) -> int:
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.wait_end()


class Stack:
    """Configuration, control socket, supervisord and client, all below ``directory`` (short: sockets live there)."""

    daemon: Daemon

    def __init__(self, directory: str, zygote: bool = True, daemon: bool = True, keeper: bool = False) -> None:
        self.directory = directory
        toml = f"{directory}/kuasar.toml"
        Path(toml).write_text(
            f'state_dir = "{directory}/s"\nlog_dir = "{directory}/l"\nlog_level = "debug"\n'
            f"[supervisor]\nlog_max_bytes = {LOG_BYTES}\n"
            f'socket = "{directory}/s/sup.sock"\nzygote = "{directory}/s/zyg.sock"\n'
            f'keeper = "{directory}/s/keep.sock"\n'
            "[debug]\nfailpoints = true\n"
        )
        self.config: Config = load(toml)
        render.prepare(self.config)
        text = render.render((ROOT / "etc/supervisord.conf").read_text(), self.config)
        # the tests' own processes instead of the real ones; everything else is the shipped file
        for ours, theirs in (
            ("kuasar.supervisor.plugin:", "tests.integration.supervisor.factory:"),
            ("-m kuasar.supervisor.zygote", "-m tests.integration.supervisor.zygote_main"),
            ("-m kuasar.gateway.main", "-m tests.integration.supervisor.tiny --sandbox gateway"),
        ):
            assert ours in text
            text = text.replace(ours, theirs)
        # what a test removes by hand would come back; tested on its own (test_reconcile.py)
        text = re.sub(r"(?s)\[program:reconciler\].*?(?=\[include\])", "", text)
        if not keeper:  # it lives on when supervisord is killed; then the test must see to its end
            text = re.sub(r"(?s)\[program:keeper\].*?(?=\[program:gateway\])", "", text)
        if not zygote:
            text = re.sub(r"(?s)\[program:zygote\].*?(?=\[program:gateway\])", "", text)
        self.conf = f"{directory}/supervisord.conf"
        Path(self.conf).write_text(text)
        self.control = Control(control_path(self.config))
        self.client = SupervisorClient(self.config.supervisor.socket)
        self.zygote = zygote
        if daemon:
            self.restart()

    def wait_up(self) -> None:
        """Until supervisord serves and (if there is one) the zygote listens."""
        self.daemon.wait_line("supervisord started with pid")
        if self.zygote:
            self.daemon.wait_line("zygote announced itself")

    def restart(self) -> None:
        """A supervisord, after the one before has ended."""
        self.daemon = Daemon(self.conf)
        self.wait_up()

    def ctl(self, *arguments: str) -> str:
        """supervisorctl."""
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", self.conf, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout

    @contextmanager
    def ctl_process(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """supervisorctl, running; the test ends it."""
        argv = [sys.executable, "-u", "-m", "supervisor.supervisorctl", "-c", self.conf, *arguments]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            guard = threading.Timer(PATIENCE, process.kill)
            guard.start()
            try:
                yield process
            finally:
                guard.cancel()
                process.kill()

    def record(self, sandbox: str) -> Path:
        """Write the record that makes a sandbox wanted."""
        path = Path(self.config.sandboxes_dir, sandbox, "sandbox.msgpack")
        path.parent.mkdir(mode=0o700)
        path.write_bytes(b"\x80")
        return path

    def add(self, sandbox: str) -> Peer:
        pid = self.client.add(sandbox)
        peer = self.control.next(sandbox)
        assert peer.pid == pid
        return peer

    def close(self) -> None:
        self.client.close()
        if hasattr(self, "daemon"):
            self.daemon.stop()
        self.control.close()


def wait_pidfd(pidfd: int) -> None:
    """Until the process behind ``pidfd`` has ended; closes it."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = poll.poll(PATIENCE * 1000)
    os.close(pidfd)
    assert ended, "the process did not end"
