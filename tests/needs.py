"""What a test needs of the machine it runs on, as marks: it is skipped, with the reason, where that is not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

GUEST_IMAGE = Path(__file__).parents[1] / ".kuasar" / "guest" / "image"
"""Where ``make guest`` puts the guest image."""

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes namespaces, cgroups or mounts, or files in /run")
QEMU = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed (package qemu-system-x86)"
)
IMAGE = pytest.mark.skipif(not (GUEST_IMAGE / "image.json").exists(), reason="there is no guest image (make guest)")
MACHINES = [ROOT, QEMU, IMAGE]
"""Starts pods in virtual machines."""
