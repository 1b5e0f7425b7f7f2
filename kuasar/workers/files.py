"""The pod's own files: hostname, hosts and resolv.conf, which containerd leaves to a remote sandboxer.

They live in ``<sandbox directory>/files`` and are bind-mounted into every container that does not bring its own.
"""

from __future__ import annotations

import os
import socket

from kuasar.core.errors import wrap
from kuasar.workers.pod import Dns, PodSpec

DESTINATIONS = {"hostname": "/etc/hostname", "hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}
"""Name of the file -> where containers see it."""


def pod_hostname(pod: PodSpec) -> str:
    """The hostname of the pod: its own, or the host's when CRI gives none (host network)."""
    return pod.hostname or socket.gethostname()


def write_pod_files(directory: str, pod: PodSpec) -> None:
    """Make the three files in ``directory``. Repeating rewrites them in place, so that bind mounts see the change."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    contents = {
        "hostname": pod_hostname(pod) + "\n",
        "hosts": _read_host("/etc/hosts") or "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
        "resolv.conf": resolv_conf(pod.dns) if pod.dns is not None else _read_host("/etc/resolv.conf"),
    }
    try:
        for name, content in contents.items():
            with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(content)
    except OSError as exc:
        raise wrap(exc, "cannot write the pod's files") from exc


def resolv_conf(dns: Dns) -> str:
    """The text of ``resolv.conf`` for a DNS configuration."""
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(line + "\n" for line in lines)


def _read_host(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
