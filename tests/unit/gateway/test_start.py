"""What the gateway loads before it serves tasks, and the zygote before it forks."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import os, sys
import kuasar.gateway.main
late = {"grpc", "h11", "http.client", "opentelemetry", "prometheus_client", "xmlrpc.client"}
late |= {"kuasar.gateway.sandbox_api"}
print(*sorted(late & set(sys.modules)))
print(len(os.listdir("/proc/self/task")))
"""


def test_what_starts_threads_or_loads_slowly_comes_later() -> None:
    """gRPC must not have been loaded where a process forks, and containers wait while the gateway starts."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "\n1\n"
