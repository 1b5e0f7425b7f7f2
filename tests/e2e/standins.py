"""VMMs that cannot run here, played by the stand-ins of ``tests/standins``: what is configured for their engines."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from scripts.layout import CHECKOUT
from tests.standins.install import install


def stand_ins(directory: str, hardware: str) -> dict[str, dict[str, str | bool]]:
    """Keys and values by the engine's kind. Programs and what they boot are files in ``directory``; their guests are
    behind the socket ``hardware``."""
    bzimage = bytearray(1024)
    bzimage[0x202:0x206] = b"HdrS"
    program = install("cloud_hypervisor", Path(hardware).parent / "clh", settings={"STANDIN_HARDWARE": hardware})
    return {
        "clh": {"binary": program},
        "stratovirt": {
            "binary": _program(directory, "stratovirt", STANDIN_HARDWARE=hardware),
            "kernel": _file(directory, "vmlinuz", bytes(bzimage)),
            "firmware": _file(directory, "firmware.fd", bytes(128 * 1024)),
        },
    }


def _program(directory: str, name: str, **settings: str) -> str:
    """A program that runs the stand-in ``name``: programs of ours start with no environment."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in settings.items()]
    script = f'exec {sys.executable} {CHECKOUT}/tests/standins/{name}.py "$@"'
    path = _file(directory, name, "\n".join(["#!/bin/sh", *lines, script, ""]).encode())
    os.chmod(path, 0o755)
    return path


def _file(directory: str, name: str, content: bytes) -> str:
    path = f"{directory}/{name}"
    with open(path, "wb") as file:
        file.write(content)
    return path
