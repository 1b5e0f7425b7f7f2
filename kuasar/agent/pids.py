"""Process numbers: the agent's pid namespace has its own, containerd wants the host's.

On the host the agent keeps a descriptor of the host's procfs and asks it; in a guest there is no host, and the agent's
numbers are the only ones.
"""

from __future__ import annotations

import os


class Pids:
    """Translates between the agent's numbers and the host's. ``host_proc``: directory descriptor of the host's
    procfs, or None where the agent's numbers are what the caller wants; owned by the caller."""

    def __init__(self, host_proc: int | None) -> None:
        self._host_proc = host_proc
        self.agent = os.getpid()
        self.agent_on_host = self.agent
        self._depth = 0
        """How many pid namespaces below the host's we are."""
        if host_proc is not None:
            numbers = self._numbers("self")
            if numbers:
                self.agent_on_host, self._depth = numbers[0], len(numbers) - 1

    def to_host(self, pid: int) -> int:
        """The host's number of a process that we see as ``pid``; 0 when it is gone."""
        if self._host_proc is None or not self._depth:
            return pid
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return 0
        try:
            # The kernel shows a pidfd's process as the procfs that is read numbers it.
            for line in self._read(f"self/fdinfo/{fd}").splitlines():
                if line.startswith("Pid:"):
                    return max(0, int(line.split()[1]))
        finally:
            os.close(fd)
        return 0

    def to_own(self, host_pid: int) -> int | None:
        """Our number of a process that the host knows as ``host_pid``; None if it is gone or not in our namespace."""
        if self._host_proc is None or not self._depth:
            return host_pid if os.path.exists(f"/proc/{host_pid}") else None
        numbers = self._numbers(str(host_pid))
        if len(numbers) <= self._depth:
            return None
        own = numbers[self._depth]
        # A namespace beside ours has numbers of its own at the same depth.
        return own if self.to_host(own) == host_pid else None

    def _numbers(self, name: str) -> list[int]:
        """The numbers of a process from the host's namespace down to its own."""
        for line in self._read(f"{name}/status").splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
        return []

    def _read(self, path: str) -> str:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._host_proc)
        except OSError:
            return ""
        try:
            return os.read(fd, 16384).decode(errors="replace")
        except OSError:
            return ""  # it died between open and read
        finally:
            os.close(fd)
