"""A worker for tests: the real dealer on the real loop, with handlers that leave traces in a directory.

``python -m tests.integration.bus.worker ADDRESS SANDBOX GENERATION DIRECTORY``; ``fork_workers`` starts many cheaply.
The directory stands for what outlives a worker (agent and record): ``done`` has a line for each thing that was done.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from kuasar.bus.dealer import BusDealer
from kuasar.bus.messages import Hello, Request
from kuasar.core import log
from kuasar.core.aio import Cancelled, Future, Loop
from kuasar.core.errors import NotFound, Unimplemented

EXIT_OUTDATED = 3


class TestWorker:
    """What a sandbox's worker is on the bus, with a small choice of operations."""

    __test__ = False

    def __init__(self, loop: Loop, address: str, sandbox: str, generation: int, directory: str) -> None:
        self.loop = loop
        self.sandbox = sandbox
        self.generation = generation
        self.directory = directory
        self.instance = uuid.uuid4().hex
        self.finished: Future[int] = loop.future()
        self.acked_keys: list[str] = []
        self.acked_events: list[int] = []
        self.cancelled = 0
        self.requests = 0
        self.bus = BusDealer(loop, address, sandbox, self.hello, self.handle)
        self.bus.on_outdated = lambda: self.finished.set_result(EXIT_OUTDATED)
        self.bus.on_acked = self.acked_keys.extend

    async def serve(self) -> int:
        self.bus.start()
        code = await self.finished
        await self.bus.close()
        return code

    def hello(self) -> Hello:
        return Hello(
            sandbox=self.sandbox,
            namespace="k8s.io",
            engine="runc",
            sandboxer="kuasar-runc",
            instance=self.instance,
            generation=self.generation,
            pid=os.getpid(),
            state="ready",
            containers=["c1", "c2"],
        )

    async def handle(self, request: Request) -> dict[str, Any]:
        self.requests += 1
        name = request.op.removeprefix("test.")
        operation: Callable[[dict[str, Any]], Any] | None = getattr(self, f"do_{name}", None)
        if operation is None:
            raise Unimplemented(f"unknown operation {request.op!r}", capability=request.op)
        result: dict[str, Any] = await operation({**request.body, "key": request.key})
        return result

    async def do_echo(self, body: dict[str, Any]) -> dict[str, Any]:
        return body

    async def do_hang(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            await self.loop.future()
        except Cancelled:
            self.cancelled += 1
            raise
        return {}

    async def do_change(self, body: dict[str, Any]) -> dict[str, Any]:
        """Do a thing once per key, as the agent behind a worker does; ``die`` says where kill -9 strikes."""
        path = f"{self.directory}/done"
        with open(path, "a+", encoding="ascii") as file:
            file.seek(0)
            known = dict(line.split() for line in file)
            if body["key"] in known:
                return {"done_by": int(known[body["key"]])}
            if body.get("die") == "before" and self.generation == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(f"{body['key']} {self.generation}\n")
            file.flush()
        if body.get("die") == "after" and self.generation == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if body.get("slow") and self.generation == 1:
            await self.loop.future()
        return {"done_by": self.generation}

    async def do_count(self, body: dict[str, Any]) -> dict[str, Any]:
        """Something that is done again when it is asked for again: only the bus keeps it from being done twice."""
        with open(f"{self.directory}/count", "a", encoding="ascii") as file:
            file.write(f"{body['key']}\n")
        await self.loop.sleep(body.get("seconds", 0.0))
        return {"key": body["key"]}

    async def do_publish(self, body: dict[str, Any]) -> dict[str, Any]:
        for n in range(body["first"], body["first"] + body["count"]):
            self.bus.publish("test.event", {"id": n}, partial(self.acked_events.append, n))
        return {}

    async def do_facts(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "acked_keys": self.acked_keys,
            "acked_events": self.acked_events,
            "cancelled": self.cancelled,
            "malformed": self.bus.malformed,
            "stale": self.bus.stale,
            "requests": self.requests,
        }

    async def do_refuse(self, body: dict[str, Any]) -> dict[str, Any]:
        raise NotFound("container c9 does not exist", container="c9")

    async def do_break(self, body: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("a defect")

    async def do_large(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"data": bytes(body["size"])}

    async def do_leave(self, body: dict[str, Any]) -> dict[str, Any]:
        self.loop.call_soon(self.finished.set_result, 0)
        return {"last": "words"}


def serve(address: str, sandbox: str, generation: int, directory: str) -> int:
    """Be a worker until told to leave; gives the exit code."""
    log.configure("warning", sandbox=sandbox)
    loop = Loop()
    try:
        return loop.run(TestWorker(loop, address, sandbox, generation, directory).serve())
    finally:
        loop.close()


def fork_workers(address: str, prefix: str, count: int, directory: str) -> list[int]:
    """Fork ``count`` workers named ``<prefix><n>`` off this process, which must not have threads; gives their pids."""
    pids = []
    for n in range(count):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = serve(address, f"{prefix}{n}", 1, directory)
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def main(argv: list[str]) -> int:
    if argv[1] == "--fork":
        address, prefix, count, directory = argv[2:]
        pids = fork_workers(address, prefix, int(count), directory)
        sys.stdin.read()  # until whoever started us closes it or dies
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return 0
    address, sandbox, generation, directory = argv[1:]
    return serve(address, sandbox, int(generation), directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
