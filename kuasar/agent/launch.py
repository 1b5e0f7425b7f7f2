"""``python -m kuasar.agent.launch``: an agent where the zygote is away, from an executed program instead of a clone.

Speaks the same protocol as a fork by the zygote, on a connected socket it inherits: it writes the agent's pid (4 bytes,
native), as its own pid namespace numbers it, and exits; the agent starts at the byte ``g`` and exits at end of file:

    --args JSON        what ``agent.main.run`` gets
    --flags N          CLONE_NEW* of the namespaces to make
    --listen-fd N      the listening socket
    --control-fd N     the connected socket of this protocol

Standard output and error are the agent's log.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
from typing import NoReturn

from kuasar.agent import kernel
from kuasar.agent.main import run

_EXIT_FAILED = 70  # EX_SOFTWARE
_PID = struct.Struct("i")


def main(argv: list[str] | None = None) -> int:
    """Make the namespaces, fork the agent into them, tell its pid."""
    parser = argparse.ArgumentParser(prog="python -m kuasar.agent.launch", allow_abbrev=False)
    parser.add_argument("--args", required=True, type=json.loads)
    parser.add_argument("--flags", required=True, type=int)
    parser.add_argument("--listen-fd", required=True, type=int)
    parser.add_argument("--control-fd", required=True, type=int)
    options = parser.parse_args(argv)
    control = socket.socket(fileno=options.control_fd)
    try:
        if options.flags:
            kernel.unshare(options.flags)
        pid = os.fork()
    except OSError as exc:
        control.send(f"cannot make the agent's namespaces: {exc.strerror}".encode())
        return _EXIT_FAILED
    if pid:
        control.send(_PID.pack(pid))
        return 0
    return _be_agent(options.args, options.listen_fd, control)


def _be_agent(args: dict[str, object], listen_fd: int, control: socket.socket) -> NoReturn:
    code = _EXIT_FAILED
    try:
        with control:
            go = control.recv(1)
        os.setsid()
        code = run(args, listen_fd) if go == b"g" else 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
