"""What is asked of WasmEdge, and what is refused on its behalf."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent.drivers.wasm.module import PAGE, Interface
from kuasar.agent.drivers.wasm.native import Native, find_program, read_interpreter
from kuasar.agent.drivers.wasm.plan import Plan, Preopen, plan
from kuasar.agent.drivers.wasmedge import (
    PLUGINS,
    Program,
    available_plugins,
    chosen_plugins,
    require_runnable,
    require_version,
)
from kuasar.core.errors import BackendFailed, InvalidArgument

MIB = 1024 * 1024
SAID = (
    '/opt/we/bin/wasmedge version 0.14.1\n (plugin "wasi_logging") version 0.1.0.0\n (plugin "wasi_nn") version 0.1.10'
)
WASI = ("wasi_snapshot_preview1", "fd_write")


def planned(**spec: Any) -> Plan:
    process = {"args": ["/app.wasm", "-x", "--", "two words"], "cwd": "/", "env": ["A=b c"]}
    return plan("/rootfs", {"process": process, **spec})


def test_the_command_line() -> None:
    engine = Native("/we/wasmedge", ("/we/ld.so", "--library-path", "/we/lib", "/we/wasmedge"), (), SAID)
    program = Program(engine, -1, "/app.wasm", ["wasi_nn"], ())
    limited = planned(linux={"resources": {"memory": {"limit": 64 * MIB}}})
    program.prepare(limited, [Preopen("/c/data", "/data", writable=False), Preopen("/c", "/", writable=True)])
    assert program.argv == [
        *("/.kuasar/start/app.wasm", "--library-path", "/we/lib", "/we/wasmedge"),
        *("--dir=/data:/c/data:readonly", "--dir=/:/c", "--env=A=b c", "--env=PWD=/"),
        *(f"--memory-page-limit={60 * MIB // PAGE}", "--forbidden-plugin=wasi_nn"),
        *("--", "/.kuasar/module/app.wasm", "-x", "--", "two words"),
    ]


def test_versions() -> None:
    assert require_version("/we", SAID) == "wasmedge-0.14.1"
    with pytest.raises(BackendFailed, match=r"/old: wasmedge version 0\.13\.5 is too old, 0\.14 or newer"):
        require_version("/old", "wasmedge version 0.13.5")
    with pytest.raises(BackendFailed, match="/bin/true is no WasmEdge"):
        require_version("/bin/true", "true (GNU coreutils) 9.1")


def test_plugins_are_chosen_by_name() -> None:
    available = available_plugins(SAID)
    assert available == ("wasi_logging", "wasi_nn")
    assert chosen_plugins({}, available) == ()
    assert chosen_plugins({"other": "x", PLUGINS: "wasi_nn, wasi_logging"}, available) == ("wasi_nn", "wasi_logging")


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({PLUGINS: "wasi_nm"}, r"no plug-in wasi_nm \(there are: wasi_logging, wasi_nn\)"),
        ({"io.kuasar.wasmedge.plugin": "wasi_nn"}, "unknown"),
    ],
)
def test_annotations_that_are_wrong_are_named(annotations: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        chosen_plugins(annotations, available_plugins(SAID))
    assert caught.value.field == f"annotations.{next(iter(annotations))}"


def test_what_can_run() -> None:
    require_runnable(Interface((WASI,), True, PAGE), "x", planned(), has_plugins=False)
    require_runnable(Interface((WASI, ("wasi_ephemeral_nn", "load")), True, 0), "x", planned(), has_plugins=True)
    with pytest.raises(BackendFailed, match="unknown import: `wasi_ephemeral_nn::load`"):
        require_runnable(Interface((("wasi_ephemeral_nn", "load"),), True, 0), "x", planned(), has_plugins=False)
    with pytest.raises(BackendFailed, match="a library, not a command"):
        require_runnable(Interface((WASI,), False, 0), "x", planned(), has_plugins=False)
    small = planned(linux={"resources": {"memory": {"limit": 8 * MIB}}})
    with pytest.raises(InvalidArgument, match="exceeds memory limits"):
        require_runnable(Interface((WASI,), True, 64 * MIB), "x", small, has_plugins=False)


def test_programs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"there is no program no-such-engine in .*; do this"):
        find_program("no-such-engine", "do this")
    with pytest.raises(BackendFailed, match=f"{tmp_path}/x is no program"):
        find_program(f"{tmp_path}/x", "do this")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n" + "#" * 100)
    with pytest.raises(BackendFailed, match="no 64-bit program"):
        read_interpreter(str(script))
    cut = tmp_path / "cut"
    head = bytearray(b"\x7fELF\x02\x01" + bytes(58))
    struct.pack_into("<QQ", head, 24, 0, 64)  # a table behind the end of the file
    struct.pack_into("<HH", head, 54, 56, 1)
    cut.write_bytes(head)
    with pytest.raises(BackendFailed, match="cannot be read as a program"):
        read_interpreter(str(cut))
