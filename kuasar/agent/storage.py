"""What a container's file systems and devices are made from: the host's own, or a virtual machine's."""

from __future__ import annotations

from typing import Any, Protocol


class Storage(Protocol):
    """Changes a creation request before anything of it is made."""

    async def prepare(
        self, container: str, rootfs: list[Any], spec: dict[str, Any], deadline: float | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """The root file system's mounts and the specification as the agent shall see them; the given ones stay as they
        are. What is held for ``container`` is held until :meth:`release`, also after a failure."""

    def release(self, container: str) -> None:
        """Give up what is held for ``container``; repeating is harmless. Raises ``BackendFailed``."""


class HostStorage:
    """On the host everything is what it is called."""

    async def prepare(
        self, container: str, rootfs: list[Any], spec: dict[str, Any], deadline: float | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """See :class:`Storage`."""
        return rootfs, spec

    def release(self, container: str) -> None:
        """See :class:`Storage`."""
