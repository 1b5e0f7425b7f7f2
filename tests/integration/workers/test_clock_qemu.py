"""The clock of a machine that drifts, or that somebody in it has set, is set again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests import needs
from tests.integration.net.wires import Namespace
from tests.integration.workers.rig import Rig, rig, run

pytestmark = needs.MACHINES
TELL = "while :; do date +%s; sleep 0.2; done"
SET_BACK = "date -s @1000000000"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace("pod")
    yield made
    made.remove()


async def start(r: Rig, container: str, command: str, stdout: str = "") -> None:
    """A container that may set the clock of its machine."""
    process = {
        "args": ["/bin/sh", "-c", command],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {kind: ["CAP_SYS_TIME"] for kind in ("bounding", "effective", "permitted")},
    }
    bundle = r.bundle(container, command, process=process)
    rootfs = [{"type": "bind", "source": f"{bundle}/image", "target": "", "options": ["rbind", "rw"]}]
    streams: dict[str, Any] = {"terminal": False, "stdin": "", "stdout": stdout, "stderr": ""}
    await r.call("task.create", id=container, bundle=bundle, rootfs=rootfs, **streams)
    await r.call("task.start", id=container, exec_id="")


def test_the_clock_is_set_periodically(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.worker_module = "tests.integration.workers.ticking"
            await r.start_zygote()
            await r.start_keeper()
            await r.start_worker()
            pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
            await r.create(engine="qemu", netns=namespace.path, config=pod)
            r.seconds = 60.0
            await r.call("sandbox.start")
            out = r.root / "out"
            os.mkfifo(out)
            reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
            try:
                await start(r, "tells", TELL, str(out))
                seen = b""

                def told() -> list[int]:
                    nonlocal seen
                    with suppress(BlockingIOError):
                        seen += os.read(reader, 4096)
                    return [int(line) for line in seen.split(b"\n")[:-1]]

                await r.until(told, seconds=30.0)
                assert abs(told()[-1] - time.time()) < 5
                await start(r, "sets", SET_BACK)
                assert (await r.call("task.wait", key="", id="sets", exec_id=""))["exit_status"] == 0
                before = len(told())
                await r.until(lambda: len(told()) > before + 2 and abs(told()[-1] - time.time()) < 5, seconds=30.0)
            finally:
                os.close(reader)
            await r.call("sandbox.shutdown")
            await r.nothing_held()

    run(scenario(), seconds=120)
