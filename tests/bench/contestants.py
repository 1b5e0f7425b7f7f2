"""Who takes part in a run: runtime handlers of containerd, what each can run, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Programs:
    """What is run in the containers of a contestant: command lines in its image."""

    wasm: bool
    """Whether they are in the Wasm image."""
    hello: tuple[str, ...]
    """Writes a line and ends."""
    idle: tuple[str, ...]
    """Does nothing for longer than a run takes."""


LINUX = Programs(False, ("echo", "hello"), ("sleep", "3600"))
MODULES = Programs(True, ("/hello.wasm", "hello"), ("/idle.wasm",))
SMALL_MODULE, LARGE_MODULE = ("/small.wasm",), ("/large.wasm",)
"""Do nothing and end; they differ in their code."""


@dataclass(frozen=True)
class Contestant:
    """One runtime handler under a name."""

    name: str
    """In results.json, in tables, and of the option that names another handler."""
    handler: str
    """The handler that is taken if nothing else is said."""
    title: str
    """In pictures."""
    colour: str
    programs: Programs = LINUX


OURS = Contestant("ours", "kuasar-runc", "kuasar, runc engine", "tab:blue")
SHIM = Contestant("shim", "runc", "containerd-shim-runc-v2", "tab:orange")
WASM = Contestant("wasm", "kuasar-wasmtime", "kuasar, Wasmtime", "tab:green", MODULES)
WASMEDGE = Contestant("wasmedge", "kuasar-wasmedge", "kuasar, WasmEdge", "tab:olive", MODULES)
MACHINE = Contestant("machine", "kuasar-qemu", "kuasar, QEMU, clone of a template", "tab:purple")
COLD = Contestant("cold", "kuasar-qemu-cold", "kuasar, QEMU, cold boot", "tab:gray")

CONTESTANTS = (OURS, SHIM, WASM, WASMEDGE, MACHINE, COLD)
