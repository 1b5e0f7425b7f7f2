"""What a test needs of the machine it runs on, as marks: it is skipped, with the reason, where that is not there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from scripts import layout

GUEST_IMAGE = Path(__file__).parents[1] / ".kuasar" / "guest" / "image"
"""Where ``make guest`` puts the guest image."""

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes namespaces, cgroups or mounts, or files in /run")
QEMU = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed (package qemu-system-x86)"
)
IMAGE = pytest.mark.skipif(not (GUEST_IMAGE / "image.json").exists(), reason="there is no guest image (make guest)")
HUGE_PAGES_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGE_PAGES = pytest.mark.skipif(
    not HUGE_PAGES_POOL.exists() or not os.access(HUGE_PAGES_POOL, os.W_OK),
    reason="the number of huge pages of 2 MiB cannot be set on this host",
)
VSOCK_DAEMON = pytest.mark.skipif(
    not os.access(layout.VSOCK_DAEMON, os.X_OK),
    reason="there is no vhost-device-vsock (scripts/fetch-vhost-device-vsock.sh)",
)
MACHINES = [ROOT, QEMU, IMAGE]
"""Starts pods in virtual machines."""
EXITS_ARE_TOLD = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 15)
"""Whether the kernel tells how somebody else's child has ended."""
