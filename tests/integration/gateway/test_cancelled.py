"""A caller that goes away in the middle of a start, as a caller of CRI that dies, or whose time is over."""

from __future__ import annotations

import os

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2
from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from kuasar.core import records
from tests import failpoints, needs
from tests.deadline import eventually
from tests.integration.gateway.node import METADATA, SECONDS, running

pytestmark = needs.ROOT


def test_a_start_that_nobody_waits_for_any_more_is_undone() -> None:
    with running("[debug]\nfailpoints = true\n") as node:
        node.admin.ListSandboxes(pb.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
        node.create("aaa1", "web")
        failpoints.arm(node.config.failpoints_dir, "process.agent.recorded", "hang:1")
        request = controller_pb2.ControllerStartRequest(sandbox_id="aaa1")
        call = node.controller.Start.future(request, metadata=METADATA, timeout=SECONDS)
        eventually(lambda: failpoints.hits(node.config.failpoints_dir, "process.agent.recorded"), "the start has begun")
        call.cancel()
        eventually(
            lambda: records.read(node.config.sandboxes_dir, "aaa1"),
            "nothing of it is left",
            until=lambda found: found is None,
            timeout=SECONDS,
        )
        eventually(
            lambda: len(node.admin.ListSandboxes(pb.ListSandboxesRequest(), timeout=SECONDS).sandboxes),
            "it is forgotten",
            until=lambda count: count == 0,
        )
        eventually(lambda: os.listdir(node.config.sandboxes_dir), "its directory goes", until=lambda left: not left)
