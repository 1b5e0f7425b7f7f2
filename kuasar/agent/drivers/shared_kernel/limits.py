"""The limits of a kernel that several containers share: what they may have together. Pure.

Memory, processor time and shares of the containers are added up; where one of them is not limited, the sum is not
either. A container alone in its pod has exactly what it asked for (and the kernel its own share of memory).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

KERNEL_BYTES = 64 * 1024 * 1024
"""What the kernel itself may have: 35 MiB were seen for a small pod."""
_PERIOD = 100_000
_USUAL_SHARES = 1024
_MOST_SHARES = 262_144


def together(each: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """OCI resources for the kernel of containers with these resources."""
    resources = list(each)
    memory = [_number(one, "memory", "limit") for one in resources]
    quota = [_number(one, "cpu", "quota") for one in resources]
    period = [_number(one, "cpu", "period") or _PERIOD for one in resources]
    shares = sum(_number(one, "cpu", "shares") or _USUAL_SHARES for one in resources)
    is_bounded = bool(resources) and all(limit > 0 for limit in memory)
    has_quota = bool(resources) and all(value > 0 for value in quota)
    time = sum(value * _PERIOD // per for value, per in zip(quota, period, strict=True))
    return {
        "memory": {"limit": sum(memory) + KERNEL_BYTES if is_bounded else -1},
        "cpu": {
            "quota": max(1000, time) if has_quota else -1,
            "period": _PERIOD,
            "shares": min(max(shares, 2), _MOST_SHARES) if resources else _USUAL_SHARES,
        },
    }


def _number(resources: Mapping[str, Any], group: str, name: str) -> int:
    part = resources.get(group)
    value = part.get(name) if isinstance(part, Mapping) else None
    return value if type(value) is int else 0
