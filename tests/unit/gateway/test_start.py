"""What the gateway loads before it serves tasks, and the zygote before it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("module", ["kuasar.workers.main", "kuasar.agent.main", "kuasar.supervisor.zygote"])
def test_who_records_spans_needs_no_library_for_it(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'opentelemetry', 'prometheus_client'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
