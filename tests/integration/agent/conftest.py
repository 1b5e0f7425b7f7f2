"""The agent of one test, and the check that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kuasar.core import cgroup
from tests.integration.agent.harness import CGROUPS, Agent, running_agent

if os.geteuid() != 0 or shutil.which("runc") is None:
    pytest.skip("needs root and runc", allow_module_level=True)


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory, because socket addresses are short."""
    path = Path(tempfile.mkdtemp(prefix="kagt-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No mount, cgroup or descriptor of this process may be left over."""
    mounts, fds = _mounts(), _descriptors()
    yield
    left = [path for root in cgroup.current().roots() for path in Path(root, CGROUPS).glob("*")]
    left = [path for path in left if path.is_dir()]
    assert not left, f"cgroups left: {left}"
    for root in cgroup.current().roots():
        with suppress(OSError):
            Path(root, CGROUPS).rmdir()
    assert _mounts() == mounts
    assert _descriptors() == fds


@pytest.fixture
def agent(base: Path) -> Iterator[Agent]:
    """An agent in namespaces of its own."""
    with running_agent(base, f"t{uuid.uuid4().hex[:8]}") as agent:
        yield agent
        print(agent.log.read_text())


def _mounts() -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/kagt-" in line]


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name for name in found if "/proc/" not in name)
