"""``python -m tests.standins.guest.server SOCKET``: the hardware that stand-ins plug into, for all guests of a run.

Needs root. Whoever can reach the socket gets a machine: tests put it into a directory that they throw away. Ends with
the process that started it; each guest has a process of its own, which ends with the guest's VMM.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kuasar.supervisor.clone import set_parent_death_signal
from tests.standins.guest.machine import Machine

_CREDENTIALS = struct.Struct("3i")


def serve(path: str) -> None:
    """Until killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            _reap()
            with connection:
                vmm = _CREDENTIALS.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )[0]
                if os.fork() == 0:
                    listener.close()
                    _be_machine(connection, vmm)


def _be_machine(connection: socket.socket, vmm: int) -> None:
    code = 1
    try:
        Machine(connection, vmm).serve()
        code = 0
    except BaseException as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        os._exit(code)


def _reap() -> None:
    """Guests that have ended since the last one came."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


@contextmanager
def running_hardware() -> Iterator[str]:
    """A server of the caller's own; gives the path of its socket, which everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="khw-") as directory:
        os.chmod(directory, 0o711)
        path = f"{directory}/hardware.sock"
        log = Path(directory, "log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.standins.guest.server", path],
                cwd=Path(__file__).parents[3],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the hardware of the stand-ins does not start: {log.read_text()}")
            yield path
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            complaints = log.read_text()
            if complaints:
                print(complaints, file=sys.stderr)


def main(argv: list[str]) -> int:
    """The program."""
    set_parent_death_signal(os.getppid())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve(argv[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
