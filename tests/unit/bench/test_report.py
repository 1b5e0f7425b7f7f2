"""The files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.contestants import COLD, CONTESTANTS, MACHINE, OURS, SHIM, WASM
from tests.bench.metrics import METRICS
from tests.bench.results import Results

pytestmark = pytest.mark.leaks("matplotlib keeps the files of the fonts open that it has drawn with")


def test_everything_measured_is_written_with_its_pictures(tmp_path: Path) -> None:
    results = Results(facts={"started": "today"})
    for metric in METRICS:
        for who in CONTESTANTS:
            results.add(metric.key, who, 3.0, 4.0)
    results.phases["host"].append({"files": 1.0, "agent": 2.0})
    results.phases[MACHINE.name].append({"vmm": 100.0, "identity": 80.0})
    results.phases[COLD.name].append({"agent": 4000.0})
    for key, who, roles in (
        ("memory", OURS, {"worker": 4.0, "agent": 3.0}),
        ("memory.container", SHIM, {"shim": 4.0, "pause": 0.1, "container": 0.1}),
        ("memory.container", WASM, {"worker": 4.0, "agent": 3.0, "container": 5.0}),
        ("machine", MACHINE, {"memory file": 50.0, "QEMU, anonymous": 9.0, "QEMU, files": 1.0, "virtiofsd": 2.0}),
    ):
        results.keep_memory(key, who, 10, roles)
    results.details["shared"] = {"ours": {"gateway": 30.0}}
    report.write(results, str(tmp_path))
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert {"start-times.png", "machine-start-times.png", "memory.png", "machine-memory.png"} <= pictures
    assert {"phases.png", "machine-phases.png", "boot-phases.png"} <= pictures
    text = (tmp_path / "README.md").read_text()
    assert all(f"({name})" in text for name in pictures)
    assert "Memory of an idle machine, 10 of machine: memory file 50.0 MiB" in text
    assert "with 10 pods of ours: gateway 30.0 MiB" in text
    assert (tmp_path / "results.json").stat().st_size > 0


def test_pictures_without_samples_are_not_drawn(tmp_path: Path) -> None:
    results = Results(facts={"started": "today"})
    results.add("machine.run", MACHINE, 300.0)
    report.write(results, str(tmp_path))
    assert [path.name for path in tmp_path.glob("*.png")] == ["machine-start-times.png"]
