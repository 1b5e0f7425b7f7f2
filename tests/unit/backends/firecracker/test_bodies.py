"""What Firecracker is sent, word for word, and that its vendor's description allows it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from kuasar.backends.base import Nic
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.bodies import Guest, Request
from kuasar.core.errors import BackendFailed
from tests.vendor_specs import require_spec, validate_swagger

NIC = Nic("eth0", "02:00:00:00:00:01", 1450, (), "kuasar1a2b3c4d")
GUEST = Guest("console=ttyS0 quiet", 2, 256 << 20, read_only_drives=2, writable_drives=1, nics=(NIC,))


def drive(name: str, path: str, root: bool, read_only: bool) -> tuple[str, dict[str, Any]]:
    return f"drives/{name}", {
        "drive_id": name,
        "path_on_host": path,
        "is_root_device": root,
        "is_read_only": read_only,
        "cache_type": "Writeback",
    }


BOOT: list[tuple[str, dict[str, Any]]] = [
    ("machine-config", {"vcpu_count": 2, "mem_size_mib": 256, "smt": False}),
    (
        "boot-source",
        {
            "kernel_image_path": "/proc/self/fd/3",
            "initrd_path": "/proc/self/fd/4",
            "boot_args": "console=ttyS0 quiet",
        },
    ),
    drive("root", "/proc/self/fd/5", True, True),
    drive("ro0", "empty", False, True),
    drive("ro1", "empty", False, True),
    drive("rw0", "empty", False, False),
    (
        "network-interfaces/nic0",
        {"iface_id": "nic0", "host_dev_name": "kuasar1a2b3c4d", "guest_mac": "02:00:00:00:00:01"},
    ),
    ("vsock", {"guest_cid": 3, "uds_path": "vsock.sock"}),
    ("entropy", {}),
    ("actions", {"action_type": "InstanceStart"}),
]
GOLDEN: dict[str, tuple[Request, Request]] = {
    "swap": (
        bodies.swap("rw0", "k1"),
        Request("PATCH", "drives/rw0", {"drive_id": "rw0", "path_on_host": "k1"}),
    ),
    "pause": (bodies.pause(), Request("PATCH", "vm", {"state": "Paused"})),
    "resume": (bodies.resume(), Request("PATCH", "vm", {"state": "Resumed"})),
    "snapshot": (
        bodies.snapshot(),
        Request(
            "PUT",
            "snapshot/create",
            {"snapshot_type": "Full", "snapshot_path": "/proc/self/fd/7", "mem_file_path": "/proc/self/fd/8"},
        ),
    ),
    "restore": (
        bodies.restore(["kuasar1a2b3c4d"]),
        Request(
            "PUT",
            "snapshot/load",
            {
                "snapshot_path": "/proc/self/fd/7",
                "mem_backend": {"backend_type": "File", "backend_path": "/proc/self/fd/8"},
                "resume_vm": True,
                "network_overrides": [{"iface_id": "nic0", "host_dev_name": "kuasar1a2b3c4d"}],
            },
        ),
    ),
}
SENT = [*bodies.boot(GUEST), *(sent for sent, _ in GOLDEN.values()), bodies.restore([])]


def test_a_boot_is_these_requests_in_this_order() -> None:
    assert list(bodies.boot(GUEST)) == [Request("PUT", endpoint, body) for endpoint, body in BOOT]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_request_is_word_for_word(name: str) -> None:
    sent, golden = GOLDEN[name]
    assert sent == golden


@pytest.mark.parametrize("request_", SENT, ids=lambda sent: f"{sent.method} {sent.endpoint}")
def test_the_vendor_allows_it(request_: Request) -> None:
    validate_swagger(require_spec("firecracker"), request_.method, request_.endpoint, request_.body)


def test_the_vendor_s_description_refuses_what_it_does_not_name() -> None:
    spec = require_spec("firecracker")
    with pytest.raises(jsonschema.ValidationError, match="serial"):
        validate_swagger(spec, "PUT", "drives/root", {**BOOT[2][1], "serial": "k1"})


def test_fields_that_the_oldest_version_does_not_know_are_not_sent() -> None:
    """``mtu`` came with 1.16, ``vsock_override`` and ``clock_realtime``, too; unknown fields are refused."""
    sent = str(SENT)
    assert not [field for field in ("mtu", "vsock_override", "clock_realtime", "serial_out_path") if field in sent]


def test_argv() -> None:
    assert bodies.argv("/opt/fc") == [
        "/opt/fc",
        "--api-sock",
        "api.sock",
        "--id",
        "kuasar",
        "--log-path",
        "/proc/self/fd/6",
        "--level",
        "Warning",
        "--show-level",
    ]


@pytest.mark.parametrize(
    ("wanted", "cards", "counts"), [(8, 1, (4, 4)), (5, 1, (3, 2)), (96, 1, (7, 6)), (96, 3, (6, 5)), (96, 40, (1, 1))]
)
def test_there_are_as_many_drives_as_fit(wanted: int, cards: int, counts: tuple[int, int]) -> None:
    assert bodies.split_drives(wanted, cards) == counts


def test_a_serial_number_is_what_firecracker_makes_of_a_file() -> None:
    assert bodies.serial_of(65024, 0, 131) == "650240131"
    assert bodies.serial_of(65024, 1797, 12345678901234567890) == "65024179712345678901"


@pytest.mark.parametrize(
    ("said", "version"), [("Firecracker v1.12.0\n\n", "1.12.0"), ("Firecracker v1.17.0-dev\n", "1.17.0-dev")]
)
def test_versions_that_will_do(said: str, version: str) -> None:
    assert bodies.require_version("fc", said) == version


@pytest.mark.parametrize(
    ("said", "words"), [("Firecracker v1.9.1\n", "too old"), ("", "no version"), ("QEMU emulator 10", "no version")]
)
def test_versions_that_will_not_do_are_named(said: str, words: str) -> None:
    with pytest.raises(BackendFailed, match=f"/opt/fc.*{words}.*`binary`"):
        bodies.require_version("/opt/fc", said)
