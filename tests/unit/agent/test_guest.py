"""The parts of a guest's agent that need no machine: references between mounts, device rules, sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent import mounts
from kuasar.agent.guest import huge_pages, storage
from kuasar.core.errors import InvalidArgument


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], set()),
        (["lowerdir={{ mount 0 }}"], {0}),
        (["lowerdir={{overlay 2 0}}", "upperdir={{ mount 3 }}/upper"], {0, 1, 2, 3}),
        (["lowerdir={{ overlay 1 2 }}:/x"], {1, 2}),
        (["lowerdir={{ source 1 }}", 7], set()),
    ],
)
def test_mounts_that_others_refer_to(options: list[Any], numbers: set[int]) -> None:
    assert mounts.layer_numbers([{"type": "overlay", "options": options}]) == numbers


@pytest.mark.parametrize("reference", ["{{ mount 0 }}", "{{ overlay 0 4 }}"])
def test_a_reference_to_what_is_not_earlier_is_refused(tmp_path: Path, reference: str) -> None:
    overlay = {"type": "overlay", "source": "overlay", "options": [f"lowerdir={reference}"]}
    with pytest.raises(InvalidArgument, match=r"rootfs\[0\]: \{\{ .* \}\}: refers to no earlier mount"):
        mounts.mount_rootfs([overlay], str(tmp_path / "rootfs"), str(tmp_path / "layers"))


@pytest.mark.parametrize(("option", "flag"), [("ro", True), ("rprivate", True), ("size=1m", False), ("noload", False)])
def test_whose_an_option_is(option: str, flag: bool) -> None:
    assert mounts.is_flag(option) is flag


def test_device_rules_follow_the_device() -> None:
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 7, "minor": 1, "access": "r"},
        {"allow": True, "type": "c", "major": 7, "minor": 1, "access": "rw"},
    ]
    changed = storage._renumber(rules, {(7, 1): (254, 16), (7, 2): (254, 32)})
    assert changed[0] == rules[0]
    assert changed[1] == {"allow": True, "type": "b", "major": 254, "minor": 16, "access": "r"}
    assert changed[2] == rules[2]
    assert changed[3:] == [{"allow": True, "type": "b", "major": 254, "minor": 32, "access": "rwm"}]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64k", 65536), ("2M", 2 << 20), ("2Mi", 2 << 20), ("2MB", 2 << 20), ("1g", 1 << 30)],
)
def test_sizes_of_volumes(text: str, size: int) -> None:
    assert huge_pages.bytes_of(text, "options") == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5g", "1t", "2mm", "2bi"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no size"):
        huge_pages.bytes_of(text, "options")


def test_an_agent_on_the_host_imports_nothing_of_the_guests() -> None:
    program = "import sys, kuasar.agent.main; print([n for n in sys.modules if n.startswith('kuasar.agent.guest')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=os.getcwd(), timeout=60)
    assert done.stdout == "[]\n", done.stderr
