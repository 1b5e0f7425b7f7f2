"""``when_listening.py SOCKET COMMAND...``: become COMMAND as soon as something listens on a unix socket.

containerd gives up the containers of before its restart when the gateway refuses its connection, so in our stack it
starts after the gateway has begun to listen, also when supervisord starts both at once. Standard library only: 15 ms.
"""

import os
import socket
import sys
import time

_SECONDS = 30.0
_PAUSE = 0.01


def is_listening(path: str) -> bool:
    """Whether a connection is accepted."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:  # not there yet, or of a process that has ended
            return False
    return True


def main() -> None:
    """Does not return: COMMAND takes over, also after 30 s in vain, because it may be able to say more."""
    path, *command = sys.argv[1:]
    deadline = time.monotonic() + _SECONDS
    while not is_listening(path):
        if time.monotonic() > deadline:
            sys.stderr.write(f"nothing listens on {path} after {_SECONDS:g} s, going on without\n")
            break
        time.sleep(_PAUSE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
