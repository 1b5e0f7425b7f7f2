"""The table of engines: configuration kind to backend module. One line here is how an engine joins.

Data only, so that the configuration can be checked without importing any backend; ``backends/registry.py`` imports
the module when the first sandbox of that kind needs it.
"""

BACKEND_MODULES: dict[str, str] = {
    "clh": "kuasar.backends.cloud_hypervisor.engine",
    "firecracker": "kuasar.backends.firecracker.engine",
    "gvisor": "kuasar.backends.gvisor",
    "qemu": "kuasar.backends.qemu.engine",
    "quark": "kuasar.backends.quark",
    "runc": "kuasar.backends.runc",
    "stratovirt": "kuasar.backends.stratovirt.engine",
    "wasmedge": "kuasar.backends.wasmedge",
    "wasmtime": "kuasar.backends.wasmtime",
}

GVISOR_PLATFORMS = ("systrap", "ptrace")
"""How runsc may intercept system calls, best first."""
