"""A node without containerd: supervisord with the real gateway, zygote and workers, in a directory of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from kuasar.agent import kernel
from kuasar.api import anypb
from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as pb
from kuasar.api.gen.containerd.sandbox.v1.controller_pb2_grpc import ControllerStub
from kuasar.api.gen.cri.v1 import common_pb2, pod_pb2
from kuasar.api.gen.kuasar.admin.v1.admin_pb2_grpc import AdminStub
from kuasar.core.config import load
from kuasar.supervisor import render
from tests.integration.supervisor.stack import PATIENCE, ROOT, Daemon

NAMESPACE = "k8s.io"
METADATA = (("containerd-namespace", NAMESPACE),)
SECONDS = 3 * PATIENCE
"""Of a call that starts or ends a sandbox."""


class Node:
    """One node; its pods have the host's network."""

    def __init__(self, directory: str, settings: str = "") -> None:
        """``settings``: tables appended to kuasar.toml; ``DIR`` in it is the directory."""
        self.directory = directory
        self.toml = f"{directory}/kuasar.toml"
        Path(self.toml).write_text(
            f'state_dir = "{directory}/s"\nlog_dir = "{directory}/l"\ncache_dir = "{directory}/c"\n'
            f'[gateway]\nsocket = "{directory}/s/gw.sock"\ntask_socket = "{directory}/s/task.sock"\n'
            f'[containerd]\nevents = "{directory}/no-containerd.ttrpc"\n'
            f'[supervisor]\nsocket = "{directory}/s/sup.sock"\nzygote = "{directory}/s/zyg.sock"\n'
            f'keeper = "{directory}/s/keep.sock"\n'
            '[sandboxers.kuasar-runc]\nengine = "runc"\n[sandboxers.kuasar-gone]\nengine = "gone"\n'
            f'[engines.runc]\n[engines.wasmtime]\n[engines.gone]\nkind = "runc"\nbinary = "{directory}/no-runc"\n'
            + settings.replace("DIR", directory)
        )
        self.config = load(self.toml)
        render.prepare(self.config)
        text = render.render((ROOT / "etc/supervisord.conf").read_text(), self.config)
        # it would give the records that a test writes by hand a worker
        text = re.sub(r"(?s)\[program:reconciler\].*?(?=\[include\])", "", text)
        Path(f"{directory}/supervisord.conf").write_text(text)
        self.cgroup = f"/kuasar-test-{os.getpid()}"
        self.daemon = Daemon(f"{directory}/supervisord.conf")
        self.daemon.wait_line("zygote announced itself")
        self.channel = grpc.insecure_channel(f"unix:{self.config.gateway.socket}")
        self.controller = ControllerStub(self.channel)
        self.admin = AdminStub(self.channel)
        self._sandboxes: list[str] = []

    def create(self, sandbox: str, name: str, sandboxer: str = "kuasar-runc") -> None:
        """A pod that has a worker, and no more."""
        config = pod_pb2.PodSandboxConfig(hostname=name)
        config.metadata.name, config.metadata.namespace, config.metadata.uid = name, "default", f"uid-{name}"
        config.linux.cgroup_parent = self.cgroup
        config.linux.security_context.namespace_options.network = common_pb2.NamespaceMode.NODE
        request = pb.ControllerCreateRequest(sandbox_id=sandbox, sandboxer=sandboxer, options=anypb.pack(config))
        self._sandboxes.append(sandbox)
        self.controller.Create(request, metadata=METADATA, timeout=SECONDS, wait_for_ready=True)

    def start(self, sandbox: str) -> None:
        """Have its machine started."""
        self.controller.Start(pb.ControllerStartRequest(sandbox_id=sandbox), metadata=METADATA, timeout=SECONDS)

    def run(self, sandbox: str, name: str) -> None:
        """Both."""
        self.create(sandbox, name)
        self.start(sandbox)

    def remove(self, sandbox: str) -> None:
        """End it and have everything of it freed."""
        request = pb.ControllerShutdownRequest(sandbox_id=sandbox)
        self.controller.Shutdown(request, metadata=METADATA, timeout=SECONDS, wait_for_ready=True)
        self.forget(sandbox)

    def forget(self, sandbox: str) -> None:
        """It is gone, or is about to be removed by the gateway itself."""
        self._sandboxes.remove(sandbox)

    def ctl(self, *arguments: str) -> str:
        """supervisorctl."""
        argv = [
            sys.executable,
            "-m",
            "supervisor.supervisorctl",
            "-c",
            f"{self.directory}/supervisord.conf",
            *arguments,
        ]
        return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False).stdout

    def close(self) -> None:
        """Nothing is left."""
        for sandbox in list(self._sandboxes):
            self.remove(sandbox)
        self.channel.close()
        self.daemon.stop()
        for pattern in (self.cgroup[1:], f"*{self.cgroup}"):
            for path in Path("/sys/fs/cgroup").glob(pattern):
                path.rmdir()


@contextmanager
def running(settings: str = "", state_kib: int = 0) -> Iterator[Node]:
    """A node. ``state_kib``: the size of a file system of its own for the state directory."""
    directory = tempfile.mkdtemp(prefix="kn-", dir="/tmp")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        if state_kib:
            os.mkdir(f"{directory}/s", 0o700)
            kernel.mount("tmpfs", f"{directory}/s", "tmpfs", 0, f"size={state_kib}k,mode=0700")
            stack.callback(kernel.umount, f"{directory}/s")
        node = Node(directory, settings)
        stack.callback(node.close)
        yield node
