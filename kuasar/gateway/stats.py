"""Statistics of a cgroup as containerd wants them: one of two protobuf messages, by the cgroup version of the node."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

from kuasar.api import anypb
from kuasar.api.gen.containerd.cgroups.v1 import metrics_pb2 as v1
from kuasar.api.gen.containerd.cgroups.v2 import metrics_pb2 as v2
from kuasar.core.errors import Internal

_MESSAGES: dict[int, type[v1.Metrics] | type[v2.Metrics]] = {1: v1.Metrics, 2: v2.Metrics}


def metrics_any(stats: dict[str, Any]) -> AnyMessage:
    """The Metrics message of ``stats``, which has its field names plus ``version`` (``kuasar/core/cgroup.py``).

    Anything else fails the call at containerd, so a map that does not fit is :class:`Internal`.
    """
    values = dict(stats)
    version = values.pop("version", None)
    message = _MESSAGES.get(version) if isinstance(version, int) else None
    if message is None:
        raise Internal(f"statistics of unknown cgroup version {version!r}")
    try:
        return anypb.pack(json_format.ParseDict(values, message()))
    except json_format.ParseError as exc:
        raise Internal(f"statistics do not fit {message.DESCRIPTOR.full_name}: {exc}") from exc
