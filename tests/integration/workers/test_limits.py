"""What is refused before it runs out."""

from __future__ import annotations

import os
import resource

import pytest

from kuasar.core.errors import ResourceExhausted
from tests import needs
from tests.integration.workers.rig import rig, run

pytestmark = needs.ROOT


def test_an_agent_short_of_descriptors_refuses_and_goes_on() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create()
            pid = (await r.call("sandbox.start"))["pid"]
            await r.create_container("c1", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
            await r.call("task.start", id="c1", exec_id="")
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 40, before[1]))
            with pytest.raises(ResourceExhausted, match="descriptors"):
                await r.create_container("c2", "exit 0")
            assert list(r.record()["containers"]) == ["c1"]
            # what runs can still be ended
            await r.call("task.kill", id="c1", exec_id="", signal=15, all=False)
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 9
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            await r.create_container("c3", "exit 4")
            await r.call("task.start", id="c3", exec_id="")
            assert (await r.call("task.wait", key="", id="c3", exec_id=""))["exit_status"] == 4
            await r.call("sandbox.shutdown")
            await r.nothing_held()

    run(scenario())
