"""The channel where the only port of the machine is a virtio console's, as in StratoVirt's microvm."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.integration.guest.conftest import Built, needs_qemu
from tests.integration.guest.containers import container, run_to_end
from tests.integration.guest.machine import start_machine

pytestmark = needs_qemu
IDENTITY = {"machine_id": "7" * 32, "hostname": "pod"}


def test_every_byte_passes_in_both_directions(built: Built) -> None:
    with start_machine(built.image, built.directory, built.root_disk, console=True, can_grow=False) as machine:
        for _ in range(2):  # a successor connects anew
            with machine.connect() as connection:
                # all that a terminal would take for itself, and the bytes of the times, which are as good as random
                for entropy in (bytes(range(64)), bytes(range(128, 192)), os.urandom(64)):
                    body: dict[str, Any] = {"time_ns": time.time_ns(), "entropy": entropy, **IDENTITY}
                    assert connection.call("guest.identity", body)["hostname"] == "pod"
                assert run_to_end(connection, container("c", "raise SystemExit(7)")) == 7
        assert "listening on serial port kuasar.agent" in machine.console
