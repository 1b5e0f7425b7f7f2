"""A process that serves a small Task API over ttrpc, to be killed at any moment: ``python -m … ROOT``.

What workers and agents are for the real gateway, files are here: they outlive the process. ``ROOT/done`` has a line per
change, with its key; a change that comes again under its key is not made again. ``ROOT/ended/<id>`` ends a Wait.
"""

# ruff: noqa: N802 - methods are named as the protobuf description names them
from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from google.protobuf.empty_pb2 import Empty

from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.core import failpoints
from kuasar.core.process import raise_descriptor_limit
from kuasar.gateway.calls import Call, InFlight, methods_of
from kuasar.gateway.custody import Custody
from kuasar.gateway.ttrpc_server import TtrpcServer
from kuasar.supervisor.keeper_client import Keeper

SERVICE = pb.DESCRIPTOR.services_by_name["Task"]


class Files:
    """The service."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._ended = asyncio.Condition()

    async def Connect(self, request: pb.ConnectRequest, call: Call) -> pb.ConnectResponse:
        """Answers with as many bytes as the id says, made of its last letter."""
        return pb.ConnectResponse(version=request.id[-1:] * int(request.id[:-1]))

    async def Exec(self, request: pb.ExecProcessRequest, call: Call) -> Empty:
        """A change: made once per key, however often it is asked for."""
        durable = call.durable
        assert durable is not None
        with open(f"{self._root}/done", "a+", encoding="ascii") as file:
            file.seek(0)
            line = f"{durable.key} {request.id} {len(request.spec.value)}\n"
            if line not in file.readlines():
                file.write(line)
        await asyncio.sleep(0)
        return Empty()

    async def Kill(self, request: pb.KillRequest, call: Call) -> Empty:
        """Ends the Wait of the same id."""
        with open(f"{self._root}/ended/{request.id}", "w", encoding="ascii") as file:
            file.write("7")
        async with self._ended:
            self._ended.notify_all()
        return Empty()

    async def Wait(self, request: pb.WaitRequest, call: Call) -> pb.WaitResponse:
        """Answered after the Kill of the same id."""
        async with self._ended:
            await self._ended.wait_for(lambda: os.path.exists(f"{self._root}/ended/{request.id}"))
        return pb.WaitResponse(exit_status=7)

    def __getattr__(self, name: str) -> Any:
        if name not in SERVICE.methods_by_name:
            raise AttributeError(name)
        return self.Connect


async def _serve(root: str) -> None:
    raise_descriptor_limit()
    failpoints.configure(f"{root}/failpoints")
    custody = Custody(Keeper(f"{root}/s/keep.sock"))
    await custody.find()
    methods = {SERVICE.full_name: methods_of(SERVICE, Files(root), InFlight(1000))}
    TtrpcServer(f"{root}/task.sock", methods, custody, f"{root}/journal").start()
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
