"""Processes by their pidfd."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kuasar.core.process import has_ended, wait_status
from tests import needs


@pytest.fixture
def child() -> Iterator[tuple[int, int]]:
    """A child that waits for a signal, and its pidfd."""
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    yield pid, pidfd
    os.close(pidfd)


def test_how_a_process_ended_is_told_when_it_was_reaped(child: tuple[int, int]) -> None:
    pid, pidfd = child
    assert wait_status(pidfd) is None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(pidfd)
    assert wait_status(pidfd) is None
    os.waitpid(pid, 0)
    assert wait_status(pidfd) == (signal.SIGKILL if needs.EXITS_ARE_TOLD else None)
