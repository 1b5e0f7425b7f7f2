"""A newcomer's walk: a fresh copy, the README's first command, a look around, a failure that explains itself, the end.

What is typed is taken from the README or from what the commands before have printed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks, needs
from tests.deadline import eventually

CHECKOUT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".kuasar", "__pycache__", ".*_cache", "*.egg-info", "bench-results"
)
STACK = "/run/kuasar-dev"
LONGEST_SECONDS = 900
OF_THIS_RUN = ("PYTEST", "KUASAR", "MAKE", "MFLAGS", "VIRTUAL_ENV", "ENGINE")
"""Variables that a newcomer does not have."""
pytestmark = [
    needs.ROOT,
    pytest.mark.skipif(os.path.exists(STACK), reason=f"a developer's stack runs here ({STACK}); make stop ends it"),
]


class Walk:
    """The newcomer's directory and shell."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.readme = (directory / "README.md").read_text()

    def type(self, command: str, code: int = 0) -> str:
        """What a command says, on both streams."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_THIS_RUN)}
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_SECONDS,
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def first_command(self) -> str:
        """Of the README's "Two commands"."""
        block = re.search(r"## Two commands.*?```sh\n(.*?)```", self.readme, re.DOTALL)
        assert block is not None
        return block[1].splitlines()[0].partition("#")[0].strip()


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """One copy for all: what is installed in it stays installed."""
    leaks.adopt_orphans(False)  # what make run leaves running is init's, as on a newcomer's machine
    directory = tmp_path_factory.mktemp("newcomer") / "kuasar"
    shutil.copytree(CHECKOUT, directory, symlinks=True, ignore=NOT_COPIED)
    walk = Walk(directory)
    yield walk
    walk.type("make stop")
    shutil.rmtree(directory)


def test_from_the_readme_to_a_pod_a_failure_and_the_end(walk: Walk) -> None:
    assert walk.first_command() == "make run"
    said = walk.type(walk.first_command())
    assert "Hello from runc-demo" in said
    assert "Hello from qemu-demo, Linux" in said
    assert "exited with code 0" in said  # the Wasm program
    shown = re.search(r"^(\S+kuasarctl --config \S+) ps$", said, re.MULTILINE)
    assert shown is not None
    kuasarctl = shown[1]

    table = walk.type(f"{kuasarctl} ps")
    for name in ("runc-demo", "wasmtime-demo", "qemu-demo"):
        assert re.search(rf"\S+ +default/{name} +\w+ +ready", table), table
    assert re.search(r"^runc +.*usable", walk.type(f"{kuasarctl} engines"), re.MULTILINE)
    assert "started" in walk.type(f"{kuasarctl} logs runc-demo")
    assert "together" in walk.type(f"{kuasarctl} timings qemu-demo")
    assert walk.type(f"{kuasarctl} exec runc-demo -- hostname") == "runc-demo\n"

    machine = re.search(r"default/qemu-demo .* (\d+)$", table, re.MULTILINE)
    assert machine is not None
    walk.type(f"kill -KILL {machine[1]}")
    why = eventually(
        lambda: walk.type(f"{kuasarctl} why qemu-demo; true"), "it says why", until=lambda text: "ended at" in text
    )
    assert "the machine ended: " in why
    if needs.EXITS_ARE_TOLD:
        assert "qemu: killed by SIGKILL" in why

    end = walk.type("make stop")
    assert "nothing is left" in end
    assert not os.path.exists(STACK)


def test_an_installation_comes_and_goes(walk: Walk, tmp_path: Path) -> None:
    walk.type("make install")
    root = tmp_path / "root"
    (root / "etc/containerd").mkdir(parents=True)
    (root / "etc/containerd/config.toml").write_text("version = 3\n")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    install = f".venv/bin/kuasarctl install --root {root} --containerd .kuasar/containerd/usr/bin/containerd"
    plan = walk.type(f"{install} --dry-run")
    assert "kuasar.service" in plan
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    walk.type(install)
    assert list(root.rglob("kuasar.service"))
    walk.type(f".venv/bin/kuasarctl uninstall --root {root}")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
