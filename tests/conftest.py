"""Every test must leave nothing behind (tests/leaks.py), or say why it may: ``@pytest.mark.leaks(reason)``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks

_TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaks(reason): may leave something behind, for the given reason")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared-machine",
        action="store_true",
        help="others mount and make cgroups here too: look for leaks of the tests' own processes only",
    )


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test after which there is more than before: descriptors, threads and processes for all of them, mounts,
    cgroups and network namespaces for those that can make some."""
    marker = request.node.get_closest_marker("leaks")
    if marker is not None:
        if not marker.args or not isinstance(marker.args[0], str):
            pytest.fail("@pytest.mark.leaks needs a reason")
        yield
        return
    directory = request.node.path.relative_to(_TESTS).parts[0]
    # The daemons of a whole stack are init's, as on a node; it is looked after by name (tests/e2e/leftovers.py).
    leaks.adopt_orphans(directory != "e2e")
    machine = directory == "integration" and not request.config.getoption("--shared-machine")
    sockets = directory != "e2e"
    before = leaks.Snapshot.take(machine, sockets)
    yield
    found = leaks.leaked(before, machine, gc.collect, sockets)
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found))
