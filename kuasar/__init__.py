"""Kuasar: a multi-sandbox container runtime for containerd.

Each sandbox (pod) has a worker process of its own under supervisord; a gRPC gateway translates containerd's
Sandbox and Task calls into messages on a ZeroMQ bus. ``docs/architecture.md`` draws the process tree and the
arrows between the packages.
"""

__version__ = "0.1.0"
