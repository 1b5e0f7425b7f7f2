"""What Cloud Hypervisor is sent, word for word, and that its vendor's description allows it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from kuasar.backends.base import Nic
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.core.errors import BackendFailed
from tests.vendor_specs import require_spec, validate

GUEST = bodies.Guest(
    kernel="/image/vmlinux",
    initramfs="/image/initrd",
    root_disk="/image/root.img",
    command_line="console=ttyS0 quiet",
    vsock="/run/s/vsock.sock",
    memory_bytes=128 << 20,
    max_memory_bytes=2048 << 20,
    max_vcpus=4,
    shared_memory=True,
)
NIC = Nic("eth0", "02:00:00:00:00:01", 1450, (7, 8))
GOLDEN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "create": (
        "vm.create",
        bodies.create(GUEST),
        {
            "payload": {
                "kernel": "/image/vmlinux",
                "initramfs": "/image/initrd",
                "cmdline": "console=ttyS0 quiet",
            },
            "cpus": {"boot_vcpus": 1, "max_vcpus": 4, "nested": False},
            "memory": {
                "size": 134217728,
                "shared": True,
                "hotplug_method": "VirtioMem",
                "hotplug_size": 2013265920,
            },
            "disks": [
                {"id": "root", "serial": "root", "path": "/image/root.img", "readonly": True, "image_type": "Raw"}
            ],
            "rng": {"src": "/dev/urandom"},
            "serial": {"mode": "Tty"},
            "console": {"mode": "Off"},
            "vsock": {"id": "vsock", "cid": 3, "socket": "/run/s/vsock.sock"},
        },
    ),
    "disk": (
        "vm.add-disk",
        bodies.disk("k1", "/dev/loop7", read_only=False),
        {"id": "k1", "serial": "k1", "path": "/dev/loop7", "readonly": False, "image_type": "Raw"},
    ),
    "net": (
        "vm.add-net",
        bodies.net("nic0", NIC),
        {"id": "nic0", "mac": "02:00:00:00:00:01", "num_queues": 4},
    ),
    "share": (
        "vm.add-fs",
        bodies.share("share", "/run/s/virtiofsd.sock"),
        {"id": "share", "tag": "kuasar", "socket": "/run/s/virtiofsd.sock", "num_queues": 1, "queue_size": 1024},
    ),
    "resize": ("vm.resize", bodies.resize(2, 256 << 20), {"desired_vcpus": 2, "desired_ram": 268435456}),
    "remove": ("vm.remove-device", bodies.remove("k1"), {"id": "k1"}),
    "snapshot": ("vm.snapshot", bodies.snapshot("/proc/self/fd/9"), {"destination_url": "file:///proc/self/fd/9"}),
    "restore": ("vm.restore", bodies.restore("restored"), {"source_url": "file://restored"}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_body_is_word_for_word(name: str) -> None:
    _, body, golden = GOLDEN[name]
    assert body == golden


@pytest.mark.parametrize("name", GOLDEN)
def test_the_vendor_allows_it(name: str) -> None:
    endpoint, body, _ = GOLDEN[name]
    validate(require_spec("cloud-hypervisor"), endpoint, body)


def test_the_vendor_s_description_refuses_what_it_does_not_name() -> None:
    spec = require_spec("cloud-hypervisor")
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        validate(spec, "vm.add-disk", {"id": "k1", "colour": "red"})


def test_a_machine_that_cannot_grow_has_no_room_for_memory() -> None:
    fixed = bodies.Guest(**{**vars(GUEST), "max_memory_bytes": GUEST.memory_bytes, "shared_memory": False})
    assert bodies.create(fixed)["memory"] == {"size": 134217728, "shared": False}


def test_argv() -> None:
    words = ["--api-socket", "fd=3", "--event-monitor", "fd=7", "--seccomp", "true"]
    assert bodies.argv("/opt/ch", 3, 7) == ["/opt/ch", *words]


@pytest.mark.parametrize("said, version", [("cloud-hypervisor v50.0.0\n", "50.0.0"), ("cloud-hypervisor 51.1", "51.1")])
def test_versions_that_will_do(said: str, version: str) -> None:
    assert bodies.require_version("ch", said) == version


@pytest.mark.parametrize(
    "said, words", [("cloud-hypervisor v49.1.0", "too old"), ("", "no version"), ("QEMU emulator 10", "no version")]
)
def test_versions_that_will_not_do_are_named(said: str, words: str) -> None:
    with pytest.raises(BackendFailed, match=f"/opt/ch.*{words}.*`binary`"):
        bodies.require_version("/opt/ch", said)
