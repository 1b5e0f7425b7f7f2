"""QEMU's command line: a pure function of the machine, proved by golden tests.

Nothing of a pod is in it but the numbers of descriptors: files and sockets are opened by the worker and inherited, so
QEMU needs no access to any path, and runs as a user that has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from kuasar.backends.channels import VHOST_USER_VSOCK, VSOCK
from kuasar.backends.qemu.shape import Shape

_MACHINE = "q35,vmport=off,sata=off,smbus=off,usb=off,hpet=off"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_PORTS_PER_SLOT = 8
_FIRST_PORT_SLOT = 0x10
_MIB = 1024 * 1024
_TRANSLATED_MIB = 128
"""How much translated code QEMU keeps without KVM: a start needs 24 MiB of it, and the default of 1 GiB is memory that
nobody has counted for the pod."""
ROOT_NODE, SERIAL_BUS = "root", "serial"


@dataclass(frozen=True)
class Descriptors:
    """Numbers, in QEMU, of what it inherits."""

    qmp: int
    """Listening socket of the monitor."""
    agent: int
    """What carries the agent's channel: by its kind the listening socket of a serial port, ``/dev/vhost-vsock``, or the
    connection to a vsock's daemon."""
    memory: int
    """The file of the machine's memory."""
    kernel: int
    initrd: int
    root: int
    """The root disk, read-only."""
    console: int
    """Where the console is appended to."""

    @classmethod
    def in_order(cls, first: int = 3) -> Descriptors:
        """As they are when passed in the order of the fields."""
        return cls(*range(first, first + len(cls.__dataclass_fields__)))


def build(
    binary: str,
    name: str,
    shape: Shape,
    fds: Descriptors,
    *,
    shared_memory: bool,
    incoming: bool = False,
    guest_cid: int = 0,
) -> list[str]:
    """The argument list of a machine. ``shared_memory``: whether other processes shall see its memory, else it is a
    private copy of the file; ``incoming``: it waits for a template's state instead of booting; ``guest_cid``: its
    context id, if the host's kernel gives it a vsock."""
    share = "on" if shared_memory else "off"
    argv = [binary, "-name", f"{name},debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-msg", "timestamp=on", "-sandbox", _SANDBOX]
    accel = f"tcg,tb-size={_TRANSLATED_MIB}" if shape.accel == "tcg" else shape.accel
    argv += ["-accel", accel, "-machine", f"{_MACHINE},memory-backend=ram", "-cpu", shape.cpu]
    argv += ["-smp", f"cpus=1,maxcpus={shape.max_vcpus}"]
    argv += ["-m", f"size={shape.memory_bytes // _MIB}M,slots=8,maxmem={shape.max_memory_bytes // _MIB}M"]
    memory = f"memory-backend-file,id=ram,size={shape.memory_bytes},mem-path=/proc/self/fd/{fds.memory},share={share}"
    argv += ["-object", memory, "-rtc", "base=utc,clock=host"]
    argv += ["-kernel", f"/proc/self/fd/{fds.kernel}", "-initrd", f"/proc/self/fd/{fds.initrd}"]
    argv += ["-append", shape.command_line]
    argv += ["-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    argv += ["-add-fd", f"fd={fds.console},set=1", "-add-fd", f"fd={fds.root},set=2"]
    argv += ["-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console"]
    argv += _channel(shape.channel, fds.agent, guest_cid)
    argv += ["-blockdev", f"driver=file,node-name={ROOT_NODE},filename=/dev/fdset/2,read-only=on,locking=off"]
    argv += ["-device", f"virtio-blk-pci,drive={ROOT_NODE},addr=0x3"]
    argv += ["-device", "virtio-rng-pci,addr=0x4"]
    return argv + _ports(shape.ports) + (["-incoming", "defer"] if incoming else [])


def _channel(kind: str, fd: int, guest_cid: int) -> list[str]:
    if kind == VSOCK:
        return ["-device", f"vhost-vsock-pci,id=vsock,guest-cid={guest_cid},vhostfd={fd},addr=0x2"]
    if kind == VHOST_USER_VSOCK:
        return [
            *("-chardev", f"socket,id=agent,fd={fd}"),
            *("-device", "vhost-user-vsock-pci,id=vsock,chardev=agent,addr=0x2"),
        ]
    return [
        *("-chardev", f"socket,id=agent,fd={fd},server=on,wait=off"),
        *("-device", f"virtio-serial-pci,id={SERIAL_BUS},addr=0x2"),
        *("-device", f"virtserialport,bus={SERIAL_BUS}.0,chardev=agent,name=kuasar.agent"),
    ]


def _ports(count: int) -> list[str]:
    argv: list[str] = []
    for number in range(count):
        slot, function = divmod(number, _PORTS_PER_SLOT)
        where = f"addr={_FIRST_PORT_SLOT + slot:#x}.{function},multifunction=on"
        argv += ["-device", f"pcie-root-port,id=port{number},chassis={number + 1},{where}"]
    return argv
