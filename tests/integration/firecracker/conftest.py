"""Rigs of Firecracker machines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kuasar.backends.base import ROOT, User
from tests.integration.firecracker.rig import Rig


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Makes them; the VMM runs as root unless said otherwise."""
    made: list[Rig] = []

    def make(user: User = ROOT) -> Rig:
        made.append(Rig(Path(tempfile.mkdtemp(prefix="kfc-")), user))
        return made[-1]

    yield make
    for rig in made:
        rig.close()
        shutil.rmtree(rig.directory)


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """One."""
    return make_rig()
