"""``kuasar.supervisor.start`` under a service manager: the true supervisord and gateway, and a true NOTIFY_SOCKET."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.deadline import eventually
from tests.integration.supervisor.stack import PATIENCE

pytestmark = needs.ROOT


class Service:
    """What systemd would start and listen to."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.toml = Path(directory, "kuasar.toml")
        self.toml.write_text(
            f'state_dir = "{directory}/s"\nlog_dir = "{directory}/l"\ncache_dir = "{directory}/c"\n'
            f'[gateway]\nsocket = "{directory}/s/gw.sock"\ntask_socket = "{directory}/s/task.sock"\n'
            f'[containerd]\nevents = "{directory}/no-containerd.ttrpc"\n'
            f'[supervisor]\nsocket = "{directory}/s/sup.sock"\nzygote = "{directory}/s/zyg.sock"\n'
            f'keeper = "{directory}/s/keep.sock"\n'
        )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"{directory}/notify")
        self.socket.settimeout(6 * PATIENCE)
        self.words: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kuasar.supervisor.start", "--config", str(self.toml)],
            env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "2000000"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def wait_for(self, wanted: str) -> None:
        """Until it is told."""
        self.words = []
        while not any(wanted in word for word in self.words):
            self.words += self.socket.recv(4096).decode().split("\n")

    def ctl(self, *words: str) -> str:
        """supervisorctl, with the file that the service has written."""
        argv = [sys.executable, "-m", "supervisor.supervisorctl", "-c", f"{self.directory}/s/supervisord.conf", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False).stdout

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(6 * PATIENCE)
        self.socket.close()


@pytest.fixture
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="kn-", dir="/tmp") as directory:
        made = Service(directory)
        yield made
        made.close()


def test_ready_alive_hung_and_gone(service: Service) -> None:
    service.wait_for("READY=1")
    assert "gateway" in service.ctl("status", "gateway")
    # it has answered; supervisord waits a second before it says so
    eventually(lambda: service.ctl("status", "gateway"), "it runs", until=lambda said: "RUNNING" in said)
    service.wait_for("WATCHDOG=1")
    gateway = int(service.ctl("pid", "gateway"))
    os.kill(gateway, signal.SIGSTOP)
    service.wait_for("STATUS=the gateway has not answered for")
    os.kill(gateway, signal.SIGCONT)
    service.wait_for("WATCHDOG=1")
    os.kill(gateway, signal.SIGKILL)
    eventually(lambda: service.ctl("pid", "gateway").strip() not in ("0", str(gateway)), "there is a successor")
    service.wait_for("WATCHDOG=1")
    service.process.terminate()
    service.wait_for("STOPPING=1")
    assert service.process.wait(6 * PATIENCE) == 0


def test_a_reload_is_no_stop(service: Service) -> None:
    service.wait_for("READY=1")
    service.ctl("reload")
    service.wait_for("READY=1")
    assert "STOPPING=1" not in service.words


@pytest.mark.parametrize(("text", "code"), [('log_level = "loud"\n', 2), ('state_dir = "/proc/1"\n', 1)])
def test_what_cannot_start_says_why(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "kuasar.toml").write_text(text)
    argv = [sys.executable, "-m", "kuasar.supervisor.start", "--config", str(tmp_path / "kuasar.toml")]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    assert done.returncode == code
    assert done.stderr.startswith("kuasar-supervisord: ")
