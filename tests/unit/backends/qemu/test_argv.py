"""QEMU's command line, word for word: a change of it is a change of what pods run in."""

from __future__ import annotations

import pytest

from kuasar.backends.qemu.argv import Descriptors, build
from kuasar.backends.qemu.shape import Shape, command_line, cpu_model, version_of

SHAPE = Shape(
    qemu_version="7.2.22",
    accel="tcg",
    cpu="max",
    memory_bytes=128 << 20,
    max_memory_bytes=2048 << 20,
    max_vcpus=4,
    ports=2,
    command_line="console=ttyS0 root=/dev/vda",
    image_digest="0" * 64,
    host_kernel="6.1.0",
    channel="virtio-serial",
)
GOLDEN = """\
qemu-system-x86_64
-name kuasar-s,debug-threads=on
-nodefaults
-no-user-config
-display none
-no-reboot
-msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-accel tcg,tb-size=128
-machine q35,vmport=off,sata=off,smbus=off,usb=off,hpet=off,memory-backend=ram
-cpu max
-smp cpus=1,maxcpus=4
-m size=128M,slots=8,maxmem=2048M
-object memory-backend-file,id=ram,size=134217728,mem-path=/proc/self/fd/5,share=on
-rtc base=utc,clock=host
-kernel /proc/self/fd/6
-initrd /proc/self/fd/7
-append console=ttyS0 root=/dev/vda
-chardev socket,id=qmp,fd=3,server=on,wait=off
-mon chardev=qmp,mode=control
-add-fd fd=9,set=1
-add-fd fd=8,set=2
-chardev file,id=console,path=/dev/fdset/1,append=on
-serial chardev:console
-chardev socket,id=agent,fd=4,server=on,wait=off
-device virtio-serial-pci,id=serial,addr=0x2
-device virtserialport,bus=serial.0,chardev=agent,name=kuasar.agent
-blockdev driver=file,node-name=root,filename=/dev/fdset/2,read-only=on,locking=off
-device virtio-blk-pci,drive=root,addr=0x3
-device virtio-rng-pci,addr=0x4
-device pcie-root-port,id=port0,chassis=1,addr=0x10.0,multifunction=on
-device pcie-root-port,id=port1,chassis=2,addr=0x10.1,multifunction=on"""


def lines(argv: list[str]) -> str:
    """An option and its value a line."""
    text = ""
    for word in argv:
        text += ("\n" if word.startswith("-") else " ") + word
    return text.strip()


def test_a_machine_that_boots() -> None:
    argv = build("qemu-system-x86_64", "kuasar-s", SHAPE, Descriptors.in_order(), shared_memory=True)
    assert lines(argv) == GOLDEN


def test_a_clone_differs_in_what_it_must() -> None:
    argv = build("qemu-system-x86_64", "kuasar-s", SHAPE, Descriptors.in_order(), shared_memory=False, incoming=True)
    assert lines(argv) == GOLDEN.replace("share=on", "share=off") + "\n-incoming defer"


@pytest.mark.parametrize(
    ("channel", "devices"),
    [
        ("vsock", "-device vhost-vsock-pci,id=vsock,guest-cid=70000,vhostfd=4,addr=0x2"),
        (
            "vhost-user-vsock",
            "-chardev socket,id=agent,fd=4\n-device vhost-user-vsock-pci,id=vsock,chardev=agent,addr=0x2",
        ),
    ],
)
def test_other_channels_to_the_agent(channel: str, devices: str) -> None:
    shape = Shape(**{**vars(SHAPE), "channel": channel})
    argv = build("qemu-system-x86_64", "kuasar-s", shape, Descriptors.in_order(), shared_memory=True, guest_cid=70000)
    serial = GOLDEN[GOLDEN.index("-chardev socket,id=agent") : GOLDEN.index("\n-blockdev")]
    assert lines(argv) == GOLDEN.replace(serial, devices)


def test_translated_code_is_of_emulation_only() -> None:
    shape = Shape(**{**vars(SHAPE), "accel": "kvm", "cpu": "host"})
    argv = build("q", "n", shape, Descriptors.in_order(), shared_memory=True)
    assert argv[argv.index("-accel") + 1] == "kvm"


def test_ports_fill_one_slot_after_the_other() -> None:
    shape = Shape(**{**vars(SHAPE), "ports": 10})
    argv = build("q", "n", shape, Descriptors.in_order(), shared_memory=True)
    ports = [word for word in argv if word.startswith("pcie-root-port")]
    assert [word.split("addr=")[1].split(",")[0] for word in ports][7:] == ["0x10.7", "0x11.0", "0x11.1"]


def test_descriptors_are_numbered_in_order() -> None:
    assert Descriptors.in_order(3) == Descriptors(qmp=3, agent=4, memory=5, kernel=6, initrd=7, root=8, console=9)


@pytest.mark.parametrize(
    ("accel", "qemu", "kernel", "cpu"),
    [
        ("kvm", "7.2.22", "6.12.1", "host"),
        ("tcg", "7.2.22", "6.1.0-56-cloud-amd64", "max"),
        ("tcg", "7.2.22", "6.12.1-amd64", "max,-cx16"),
        ("tcg", "10.0.2", "6.12.1-amd64", "max"),
    ],
)
def test_the_crash_of_new_kernels_under_old_emulation_is_avoided(accel: str, qemu: str, kernel: str, cpu: str) -> None:
    assert cpu_model(accel, qemu, kernel) == cpu


@pytest.mark.parametrize(("text", "version"), [("7.2.22 (Debian 1:7.2)", (7, 2, 22)), ("10.0", (10, 0)), ("no", ())])
def test_versions_are_the_leading_numbers(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


def test_everything_that_could_make_a_state_unusable_changes_the_key() -> None:
    keys = {SHAPE.key}
    for name, value in vars(SHAPE).items():
        other = value + 1 if isinstance(value, int) else f"{value}x"
        keys.add(Shape(**{**vars(SHAPE), name: other}).key)
    assert len(keys) == 1 + len(vars(SHAPE))


def test_the_operators_words_come_last() -> None:
    assert command_line("root=/dev/vda", "debug").split()[-2:] == ["root=/dev/vda", "debug"]
    assert command_line("root=/dev/vda", "").endswith("root=/dev/vda")
