"""Machines of both kinds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.core.aio import Loop
from tests.integration.stratovirt.rig import Rig


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one: socket addresses are short."""
    path = Path(tempfile.mkdtemp(prefix="ksv-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["microvm", "q35"])
def rig(directory: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """One machine, not started."""
    yield from make_rig(directory, request.param)


@pytest.fixture
def microvm(directory: Path) -> Iterator[Rig]:
    """A microvm, not started."""
    yield from make_rig(directory, "microvm")


@pytest.fixture
def q35(directory: Path) -> Iterator[Rig]:
    """A q35, not started."""
    yield from make_rig(directory, "q35")


def make_rig(directory: Path, kind: str) -> Iterator[Rig]:
    """Whatever is started is ended."""
    loop = Loop()
    made = Rig(loop, directory, kind)
    yield made
    made.end()
    made.host.close()
    loop.close()
