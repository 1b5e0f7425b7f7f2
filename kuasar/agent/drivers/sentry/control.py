"""Asking a running sentry what its containers have used: one JSON message each way on its control socket.

This is the one thing that runsc's command line does not say: what processor time each container has used.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from kuasar.core import cgroup
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, Unavailable

_MAX_ANSWER = 4 * 1024 * 1024


async def ask(loop: Loop, path: str, method: str, argument: Any, deadline: float | None) -> dict[str, Any]:
    """The result of a call. Raises :class:`Unavailable` when nobody answers, :class:`BackendFailed` for a refusal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            channel.setblocking(False)
            channel.connect(path)
            channel.send(json.dumps({"method": method, "arg": argument}).encode())
            answer = await _receive(loop, channel, method, deadline)
        except OSError as exc:
            raise Unavailable(f"the sentry does not answer: {exc.strerror}") from exc
    if not answer.get("success"):
        raise BackendFailed(f"the sentry refuses {method}: {answer.get('err') or 'no reason given'}")
    result = answer.get("result")
    return result if isinstance(result, dict) else {}


async def _receive(loop: Loop, channel: socket.socket, method: str, deadline: float | None) -> dict[str, Any]:
    """Until what came is a whole JSON document: the protocol has no lengths."""
    data = b""
    try:
        while len(data) < _MAX_ANSWER:
            await loop.wait_for(loop.wait_readable(channel.fileno()), deadline, method)
            chunk = channel.recv(65536)
            if not chunk:
                break
            data += chunk
            try:
                answer = json.loads(data)
            except ValueError:
                continue
            return answer if isinstance(answer, dict) else {}
    finally:
        loop.remove_reader(channel.fileno())
    raise Unavailable(f"the sentry ended in its answer to {method} (after {len(data)} bytes)")


def part_of(whole: dict[str, Any], container_id: str, result: dict[str, Any]) -> dict[str, Any]:
    """A container's part of the statistics ``whole`` of the kernel's cgroup: what the sentry's answer says of it.

    What cannot be told apart (throttling, limits) is the kernel's.
    """
    data = ((result.get("event") or {}).get("data")) or {}
    counted = (result.get("containerUsage") or {}).get(container_id)
    # a kernel with cgroups mounted inside counts there instead
    time = _number(counted) or _number(((data.get("cpu") or {}).get("usage") or {}).get("total"))
    memory = _number(((data.get("memory") or {}).get("usage") or {}).get("usage"))
    pids = _number((data.get("pids") or {}).get("current"))
    found = {**whole, "pids": {**whole.get("pids", {}), "current": pids}}
    part = whole.get("memory", {})
    if whole["version"] == 1:
        found["cpu"] = {**whole.get("cpu", {}), "usage": {"total": time, "user": time, "kernel": 0, "per_cpu": []}}
        nothing = {name: 0 for name in part if name.removeprefix("total_") in ("inactive_file", "cache")}
        usage = {**part.get("usage", {}), "usage": memory}
        found["memory"] = {**nothing, "rss": memory, "total_rss": memory, "usage": usage}
    else:
        micro = time // 1000
        found["cpu"] = {**whole.get("cpu", {}), "usage_usec": micro, "user_usec": micro, "system_usec": 0}
        found["memory"] = {**part, "usage": memory, "anon": memory, "inactive_file": 0}
    return found


def _number(value: object) -> int:
    return value if type(value) is int else 0


async def container_stats(
    loop: Loop, path: str, cgroup_path: str, container_id: str, deadline: float | None
) -> dict[str, Any]:
    """The statistics of one container."""
    result = await ask(loop, path, "containerManager.Event", container_id, deadline)
    return part_of(cgroup.stats(cgroup_path), container_id, result)


def socket_path(root: str, sandbox: str) -> str:
    """Where runsc puts the control socket of ``sandbox``."""
    return os.path.join(root, f"runsc-{sandbox}.sock")
