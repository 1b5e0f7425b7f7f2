"""The operations ``guest.*`` (docs/agent-protocol.md): the machine as a whole, which is the agent's here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kuasar.agent import kernel
from kuasar.agent.events import EventLog
from kuasar.agent.guest import identity, online
from kuasar.agent.guest.storage import GuestStorage
from kuasar.agent.guest.uevents import Uevents
from kuasar.agent.machine import Machine
from kuasar.agent.requests import Body
from kuasar.agent.tasks import Operation
from kuasar.core.aio import Loop
from kuasar.core.errors import InvalidArgument, wrap
from kuasar.core.ids import require_id

if TYPE_CHECKING:
    from kuasar.agent.guest.copies import Copies

CAPABILITY = "guest"
SHARED = "shared"
"""Where the pod's share is mounted, below the sandbox directory."""


class Guest:
    """One per agent. ``directory``: the sandbox directory."""

    def __init__(self, loop: Loop, events: EventLog, machine: Machine, directory: str) -> None:
        self._loop = loop
        self._events = events
        self._directory = directory
        self._uevents = Uevents(loop)
        self._share_tag = ""
        self._wake: Callable[[], None] | None = None
        self.storage = GuestStorage(self._uevents, machine.load_module, directory)
        online.expect_memory()
        machine.attach(loop)

    def operations(self) -> dict[str, Operation]:
        """By name."""
        names = ("identity", "clock", "rest", "share", "online", "disk", "write", "remove")
        return {f"guest.{name}": getattr(self, f"_{name}") for name in names}

    async def _identity(self, body: Body, deadline: float | None) -> dict[str, Any]:
        identity.assume(body, self._directory)
        if self._wake is not None:
            self._wake()
            self._wake = None
        if body.flag("rehearsal"):
            from kuasar.agent.guest.rehearsal import rehearse  # in a template only

            rehearse(self._directory)
            await self._uevents.until(lambda: True, deadline, str)
            return identity.prove(self._events.instance, with_boot_id=False)
        self._events.instance = os.urandom(16).hex()
        return identity.prove(self._events.instance)

    async def _clock(self, body: Body, deadline: float | None) -> dict[str, Any]:
        return {"offset_ns": identity.set_clock(identity.require_time(body))}

    async def _rest(self, body: Body, deadline: float | None) -> dict[str, Any]:
        from kuasar.agent.guest.rest import rest, wake  # in a template only

        self._wake = wake
        try:
            return {"free_bytes": rest()}
        except OSError as exc:
            raise wrap(exc, "cannot come to rest") from exc

    async def _share(self, body: Body, deadline: float | None) -> dict[str, Any]:
        tag = require_id(body.text("tag"), "tag")
        path = f"{self._directory}/{SHARED}"
        if self._share_tag:
            if tag != self._share_tag:
                raise InvalidArgument(f"tag: {self._share_tag} is mounted already, not {tag}", field="tag")
            return {}
        os.makedirs(path, mode=0o700, exist_ok=True)
        await self._uevents.until(
            lambda: _mount_share(tag, path), deadline, lambda: f"tag: the machine has no share {tag}"
        )
        self._share_tag = tag
        return {}

    async def _disk(self, body: Body, deadline: float | None) -> dict[str, Any]:
        name, serial, size = body.text("name"), body.text("serial"), body.number("bytes")
        return {"device": await self.storage.disks.expect(name, serial, size, deadline)}

    async def _write(self, body: Body, deadline: float | None) -> dict[str, Any]:
        self._require_no_share("name")
        self._copies().write(body)
        return {}

    async def _remove(self, body: Body, deadline: float | None) -> dict[str, Any]:
        self._require_no_share("name")
        self._copies().remove(body)
        return {}

    def _copies(self) -> Copies:
        from kuasar.agent.guest.copies import Copies  # in machines without a share only

        return Copies(f"{self._directory}/{SHARED}")

    def _require_no_share(self, field: str) -> None:
        if self._share_tag:
            raise InvalidArgument(
                f"{field}: the machine has the share {self._share_tag}, nothing is copied", field=field
            )

    async def _online(self, body: Body, deadline: float | None) -> dict[str, Any]:
        return await online.bring_online(self._loop, body, deadline)


def _mount_share(tag: str, path: str) -> bool | None:
    """Whether the share is mounted; None while its device is not there."""
    try:
        kernel.mount(tag, path, "virtiofs")
    except OSError as exc:
        if exc.errno == errno.EINVAL:  # no device has this tag
            return None
        raise wrap(exc, f"cannot mount the share {tag}") from exc
    return True
