"""Rigs of Firecracker machines."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kuasar.backends.base import ROOT, User
from tests.integration.firecracker.rig import Rig
from tests.integration.net.wires import Namespace


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


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """A network namespace as CNI leaves it."""
    made, beyond = Namespace("pod"), Namespace("beyond")
    made.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
    made.ip("link", "set", "other", "netns", beyond.path)
    made.ip("link", "set", "eth0", "up")
    yield made
    made.remove()
    beyond.remove()


@pytest.fixture
def devices_for_all() -> Iterator[None]:
    """As udev makes them on a node, for whoever is in the right group: /dev/kvm and /dev/net/tun."""
    with ExitStack() as stack:
        for path in filter(os.path.exists, ("/dev/kvm", "/dev/net/tun")):
            stack.callback(os.chmod, path, stat.S_IMODE(os.stat(path).st_mode))
            os.chmod(path, 0o666)
        yield
