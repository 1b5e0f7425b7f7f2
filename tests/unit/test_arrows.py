"""The arrows between the packages, as docs/architecture.md draws them: no import may turn one round."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "kuasar"

# package -> what it may import of the tree beside itself
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "api": set(),
    "bus": {"core"},
    # the driver of an engine with a Task server of its own speaks containerd's messages
    "agent": {"core", "api.gen.containerd.task.v2", "api.gen.ttrpc"},
    # the driver of an engine that is a program knows how it is started and which versions will do
    "backends": {
        "core",
        "agent.client",
        "agent.kernel",
        "agent.mounts",
        "agent.drivers.quark.settings",
        "agent.drivers.wasmedge",
        "agent.drivers.wasm.native",
    },
    "supervisor": {"core", "workers.main", "agent.main", "agent.kernel", "gateway.main"},
    "workers": {
        "core",
        "bus",
        "backends",
        "agent.client",
        "agent.protocol",
        "supervisor.zygote_client",
        "supervisor.keeper_client",
    },
    "gateway": {"core", "api", "bus", "supervisor.client", "supervisor.keeper_client"},
    # engines are asked and templates made by programs; the guest image is only a description of files
    "cli": {"core", "api", "install", "supervisor.client", "backends.guest_image"},
    "install": {"core"},
}
# Leaves may not even import other packages from PyPI than these.
THIRD_PARTY: dict[str, set[str]] = {"core": {"msgpack"}, "agent": {"msgpack", "wasmtime", "google"}}


def imports_of(path: Path) -> set[str]:
    """All absolute module names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module.count(".") < 2 else {module}
    return found


def files_of(package: str) -> list[Path]:
    return [path for path in (ROOT / package).rglob("*.py") if "gen" not in path.parts]


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_follow_the_arrows(package: str) -> None:
    wrong = []
    for path in files_of(package):
        for name in imports_of(path):
            if not name.startswith("kuasar."):
                continue
            target = name.removeprefix("kuasar.")
            if target.startswith(f"{package}.") or target == package or target == "__version__":
                continue
            allowed = MAY_IMPORT[package]
            if not any(target == entry or target.startswith(f"{entry}.") for entry in allowed):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("package", sorted(THIRD_PARTY))
def test_leaves_stay_light(package: str) -> None:
    import sys

    wrong = []
    for path in files_of(package):
        for name in imports_of(path):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "kuasar" and top not in THIRD_PARTY[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(sorted(wrong))
