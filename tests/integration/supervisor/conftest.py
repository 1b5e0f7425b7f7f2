"""A stack per test, and the check that nothing is left of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import psutil
import pytest

from kuasar.supervisor import clone
from tests.integration.supervisor.stack import PATIENCE, Stack


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory whose path is short enough for sockets."""
    path = tempfile.mkdtemp(prefix="kz-", dir="/tmp")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Orphans become ours, so that what a test leaves behind is seen: processes and descriptors."""
    clone.become_subreaper()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    fds = set(os.listdir("/proc/self/fd"))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=1)
    described = [f"{child.pid}: {' '.join(child.cmdline())}" for child in alive]
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)
    assert not described, f"processes left: {described}"
    assert set(os.listdir("/proc/self/fd")) <= fds, "descriptors left"


@pytest.fixture
def stack(directory: str, no_leaks: None) -> Iterator[Stack]:
    """supervisord with plugin and zygote, up and serving."""
    started = Stack(directory)
    yield started
    started.close()
