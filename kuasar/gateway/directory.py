"""Which sandbox a container is in, and which sandboxes there are: rebuilt from the workers' greetings at any moment.

Task requests name only the container; the bundle names the sandbox, once, at Create. After a restart of the gateway the
workers greet it and say which containers they have. Until every sandbox directory's worker has greeted (or the
patience is over) nobody is told that something does not exist.
"""

from __future__ import annotations

import asyncio
import os

from kuasar.bus.messages import Hello
from kuasar.core import log
from kuasar.core.errors import InvalidArgument, NotFound
from kuasar.core.ids import require_id

PATIENCE_SECONDS = 5.0
_RECORD = "sandbox.msgpack"


class Directory:
    """Sandboxes and containers known to this gateway. One per gateway, used from its loop only."""

    def __init__(self, sandboxes_dir: str) -> None:
        self._path = sandboxes_dir
        self._containers: dict[tuple[str, str], str] = {}
        self._sandboxers: dict[str, str] = {}
        self._namespaces: dict[str, str] = {}
        self._missing = _recorded(sandboxes_dir)
        self._settled = asyncio.Event()
        if not self._missing:
            self._settled.set()

    async def settle(self) -> None:
        """Wait until every recorded sandbox's worker has greeted, but not longer than the patience. Run once."""
        try:
            await asyncio.wait_for(self._settled.wait(), PATIENCE_SECONDS)
        except TimeoutError:
            log.warning("some workers have not greeted", sandboxes=" ".join(sorted(self._missing)))
            self._settled.set()

    def greeted(self, hello: Hello) -> None:
        """A worker has introduced itself: what it says replaces what we knew of its sandbox."""
        self.forget(hello.sandbox)
        if hello.namespace:
            self.add_sandbox(hello.namespace, hello.sandbox, hello.sandboxer)
        for container in hello.containers:
            self._containers[hello.namespace, container] = hello.sandbox
        self._missing.discard(hello.sandbox)
        if not self._missing:
            self._settled.set()

    def add_sandbox(self, namespace: str, sandbox: str, sandboxer: str) -> None:
        """A sandbox has been created."""
        self._sandboxers[sandbox] = sandboxer
        self._namespaces[sandbox] = namespace

    def add_container(self, namespace: str, container: str, sandbox: str) -> None:
        """A container is being created in ``sandbox``."""
        self._containers[namespace, container] = sandbox

    def has_container(self, namespace: str, container: str) -> bool:
        """Whether a container of that name exists as far as we know."""
        return (namespace, container) in self._containers

    def remove_container(self, namespace: str, container: str) -> None:
        """It is gone; harmless when unknown."""
        self._containers.pop((namespace, container), None)

    def forget(self, sandbox: str) -> None:
        """The sandbox and all its containers are gone; harmless when unknown."""
        self._sandboxers.pop(sandbox, None)
        self._namespaces.pop(sandbox, None)
        self._containers = {key: value for key, value in self._containers.items() if value != sandbox}

    @property
    def sandboxes(self) -> list[str]:
        """All that exist as far as we know."""
        return list(self._sandboxers)

    def knows(self, sandbox: str) -> bool:
        """Whether the sandbox exists as far as we know."""
        return sandbox in self._sandboxers

    def sandboxer_of(self, sandbox: str) -> str:
        """The sandboxer name under which it was created; empty if unknown."""
        return self._sandboxers.get(sandbox, "")

    def namespace_of(self, sandbox: str) -> str:
        """containerd's namespace of the sandbox; empty if unknown."""
        return self._namespaces.get(sandbox, "")

    async def require_sandbox(self, namespace: str, sandbox: str) -> str:
        """``sandbox`` if it exists in ``namespace``; raises NotFound, after everyone had time to greet."""
        if sandbox not in self._sandboxers:
            await self._settled.wait()
        if self._namespaces.get(sandbox) != namespace:
            raise NotFound(f"sandbox {sandbox} does not exist in namespace {namespace}")
        return sandbox

    async def require_container(self, namespace: str, container: str) -> str:
        """The sandbox that ``container`` is in; raises NotFound, after everyone had time to greet."""
        if (namespace, container) not in self._containers:
            await self._settled.wait()
        sandbox = self._containers.get((namespace, container))
        if sandbox is None:
            raise NotFound(f"container {container} does not exist in namespace {namespace}")
        return sandbox


def sandbox_of_bundle(bundle: str) -> str:
    """The sandbox id in ``<bundle>/sandbox``. Raises InvalidArgument if there is none."""
    if not os.path.isabs(bundle):
        raise InvalidArgument(f"bundle: {bundle!r} is not an absolute path", field="bundle")
    path = os.path.join(bundle, "sandbox")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(4096)
    except OSError as exc:
        raise InvalidArgument(
            f"bundle: {path} cannot be read ({exc.strerror}): only containers of a CRI pod can be created here",
            field="bundle",
        ) from exc
    return require_id(text.strip(), "bundle/sandbox")


def _recorded(sandboxes_dir: str) -> set[str]:
    try:
        names = os.listdir(sandboxes_dir)
    except FileNotFoundError:
        return set()
    return {name for name in names if os.path.exists(f"{sandboxes_dir}/{name}/{_RECORD}")}
