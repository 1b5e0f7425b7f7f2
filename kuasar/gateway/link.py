"""The way of a request from the gateway to a sandbox's worker: the bus, with a key for every mutating call."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import msgpack

from kuasar.bus.link import Link
from kuasar.bus.router import BusRouter
from kuasar.gateway.calls import Call, about
from kuasar.gateway.tracing.requests import current

DEFAULT_SECONDS = 120.0
"""Deadline of a call whose caller set none, waits excepted: longer than any of kubelet's."""


class Workers:
    """Calls to workers."""

    def __init__(self, router: BusRouter, engine_of: Callable[[str], str] = lambda _: "") -> None:
        """``engine_of`` gives the engine of a sandbox, for its traces."""
        self._router = router
        self._engine_of = engine_of
        self._keys = itertools.count(1)

    def link(self, sandbox: str) -> Link | None:
        """What is known of a sandbox's worker."""
        return self._router.link(sandbox)

    async def read(self, sandbox: str, op: str, body: dict[str, Any], call: Call) -> dict[str, Any]:
        """A request that changes nothing."""
        return await self._call(sandbox, op, body, deadline=_deadline(call))

    async def change(self, sandbox: str, op: str, body: dict[str, Any], call: Call) -> dict[str, Any]:
        """A request that changes something: done once, however often it has to be sent.

        The worker keeps the answer to a durable call until we have passed it on.
        """
        durable = call.durable
        if durable is None:
            key = f"{self._router.epoch:x}.{next(self._keys)}"
            return await self._call(sandbox, op, body, key=key, deadline=_deadline(call))
        durable.when_answered(lambda: self._router.acknowledge(sandbox, durable.key))
        return await self._call(sandbox, op, body, key=durable.key, deadline=_deadline(call), acknowledge=False)

    async def change_again(self, sandbox: str, op: str, body: dict[str, Any], call: Call) -> dict[str, Any]:
        """Like :meth:`change`, for calls whose callers repeat them when we have died before the answer: the key comes
        from what is asked, so that the repetition finds what its first try has done.

        Once an answer has been passed on the same call is a new one.
        """
        asked = hashlib.sha256(msgpack.packb([sandbox, op, body])).hexdigest()
        return await self._call(sandbox, op, body, key=f"s{asked[:40]}", deadline=_deadline(call))

    async def wait(self, sandbox: str, op: str, body: dict[str, Any], call: Call) -> dict[str, Any]:
        """A request that is answered when something ends, and outlives any number of workers."""
        return await self._call(sandbox, op, body, deadline=call.deadline)

    async def _call(self, sandbox: str, op: str, body: dict[str, Any], **how: Any) -> dict[str, Any]:
        known = about()
        if known is not None:
            known["sandbox"] = sandbox
            if how.get("key"):
                known["request"] = how["key"]
            if op.startswith("task."):
                known["container"] = body["id"]
        trace = current()
        if trace is None:
            return await self._router.call(sandbox, op, body, **how)
        with trace.asking(sandbox, self._engine_of(sandbox), op) as asked:
            return await self._router.call(sandbox, op, body, trace=asked, **how)


def _deadline(call: Call) -> float:
    return call.deadline if call.deadline is not None else time.monotonic() + DEFAULT_SECONDS
