"""A worker and an agent small enough to look through: they greet the test over a socket and do what it says.

Started like the real ones: from the zygote (``zygote_main.py``) or, as ``python -m``, in the exec fallback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from kuasar.core.config import Config, load


def control_path(config: Config) -> str:
    return f"{config.state_dir}/control.sock"


def _facts(name: str) -> dict[str, Any]:
    with open("/proc/self/cmdline", "rb") as file:
        cmdline = file.read()
    with open("/proc/self/comm") as file:
        comm = file.read().strip()
    return {
        "name": name,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "sid": os.getsid(0),
        "threads": len(os.listdir("/proc/self/task")),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "stdin": os.readlink("/proc/self/fd/0"),
        "cmdline": cmdline.decode(),
        "comm": comm,
        "sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "ready": time.monotonic(),
    }


def obey(name: str, path: str) -> int:
    """Greet, then obey: ``exit N``, ``raise TEXT``, ``print TEXT``, ``polite``,
    ``orphan`` (a process that says who adopts it).
    """
    facts = _facts(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(path)
        control.send(json.dumps(facts).encode())
        while True:
            word, _, rest = control.recv(65536).decode().partition(" ")
            if word == "exit":
                return int(rest)
            if word == "raise":
                raise RuntimeError(rest)
            if word == "print":
                print(rest, flush=True)
                control.send(b"done")
            elif word == "polite":  # from here on SIGTERM is answered with exit code 0
                signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
                control.send(b"done")
            elif word == "orphan":
                if os.fork() == 0:
                    middle = os.getpid()
                    if os.fork() == 0:
                        while os.getppid() == middle:
                            os.sched_yield()
                        control.send(str(os.getppid()).encode())
                    os._exit(0)
                os.wait()
            elif not word:  # the test is over
                signal.pause()


def run(args: dict[str, Any], config: Config) -> int:
    """The worker. A sandbox whose name starts with ``loop`` dies at once."""
    sandbox = args["sandbox"]
    if sandbox.startswith("loop"):
        print("dying", flush=True)
        return 3
    return obey(sandbox, control_path(config))


def run_agent(args: dict[str, Any], _: Config) -> int:
    """The agent: its greeting says what it finds behind its listening socket's number."""
    if args.get("fail"):
        raise RuntimeError(args["fail"])
    os.fstat(3)
    print("agent here", flush=True)
    return obey(args["name"], args["control"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--sandbox", required=True)
    options = parser.parse_args()
    return run({"sandbox": options.sandbox}, load(options.config))


if __name__ == "__main__":
    sys.exit(main())
