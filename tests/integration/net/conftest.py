"""Namespaces that are gone after the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.integration.net.wires import Namespace

if os.geteuid() != 0 or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
    pytest.skip("needs root, iproute2 and /dev/net/tun", allow_module_level=True)

Maker = Callable[[str], Namespace]


@pytest.fixture
def namespace() -> Iterator[Maker]:
    made: list[Namespace] = []

    def make(role: str) -> Namespace:
        made.append(Namespace(role))
        return made[-1]

    yield make
    for each in made:
        each.remove()
