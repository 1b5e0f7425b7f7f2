"""The gateway's view of supervisord: workers are added and removed there, by a thread, never on the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kuasar.core import log
from kuasar.core.errors import KuasarError
from kuasar.supervisor.client import SupervisorClient

T = TypeVar("T")
_GONE_SECONDS = 5.0
_GONE_PAUSE_SECONDS = 0.003


class Supervision:
    """Asks supervisord for workers. One thread: its XML-RPC serves one call at a time anyway."""

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="supervisord")
        self._background: set[asyncio.Task[None]] = set()

    async def add(self, sandbox: str) -> int:
        """Have a worker started for ``sandbox``; gives its pid. Raises WrongState, Unavailable."""
        return await self._call(self._client.add, sandbox)

    async def operator_stopped(self, sandbox: str) -> bool:
        """Whether an operator has stopped the worker of ``sandbox``."""
        state = await self._call(self._client.state, sandbox)
        return bool(state.get("stopped_by_operator"))

    async def restarts(self) -> dict[str, int]:
        """How often each worker has been restarted. Raises Unavailable, DeadlineExceeded."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._client.restarts)

    async def counts(self) -> dict[str, int]:
        """How many workers it has in each state. Raises Unavailable, DeadlineExceeded."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._client.counts)

    async def gone(self, sandbox: str) -> None:
        """Make sure that supervisord has forgotten the worker of a sandbox that is gone.

        The worker exits with 0 and is forgotten for it; asking closes the gap until supervisord has noticed, so that
        the name is free when the caller hears that the sandbox is gone.
        """
        until = time.monotonic() + _GONE_SECONDS
        while not await self._call(self._client.remove, sandbox):
            if time.monotonic() > until:
                log.warning("the worker of a sandbox that is gone is still ending", sandbox=sandbox)
                return
            await asyncio.sleep(_GONE_PAUSE_SECONDS)

    def remove_soon(self, sandbox: str) -> None:
        """Have the worker removed, without waiting; a failure is only logged."""
        task = asyncio.ensure_future(self._remove(sandbox))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _remove(self, sandbox: str) -> None:
        try:
            await self.gone(sandbox)
        except KuasarError as exc:
            log.warning("the worker could not be removed", sandbox=sandbox, error=exc)

    async def _call(self, function: Callable[[str], T], sandbox: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, sandbox)

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._client.close()
