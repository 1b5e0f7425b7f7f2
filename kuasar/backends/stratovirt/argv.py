"""StratoVirt's command line: a pure function of the machine, proved by golden tests.

Two kinds of machine. ``microvm`` has virtio-mmio devices, all of them made at boot: four disks and two cards whose
content can be exchanged while it runs. ``q35`` has PCI Express ports, and is started by a firmware. The share and the
agent's channel must be on the command line of either: StratoVirt 2.4 plugs in nothing but disks and cards.
"""

from __future__ import annotations

from dataclasses import dataclass

from kuasar.backends.share import TAG

MICROVM, Q35 = "microvm", "q35"
QMP_SOCKET, AGENT_SOCKET = "qmp.sock", "agent.sock"
"""In the machine's working directory."""
PORT_NAME = "kuasar.agent"
"""StratoVirt tells the guest the port's id as its name."""
MICROVM_DISKS, MICROVM_NICS = 4, 2
ROOT, SHARE = "root", "share"
_LOG_LEVEL = "STRATOVIRT_LOG_LEVEL=error"
"""The default is every QMP message and the whole configuration; warnings come with every start."""
_FIRST_SLOT, _FIRST_PORT_SLOT, _PORTS_PER_SLOT = 2, 0x10, 8
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Card:
    """A network interface: open taps by their numbers in StratoVirt."""

    name: str
    mac: str
    taps: tuple[int, ...]


@dataclass(frozen=True)
class Guest:
    """A machine as it is at boot. Paths are StratoVirt's to open; none has a comma in it (:func:`is_sayable`)."""

    name: str
    machine: str
    """``microvm`` or ``q35``."""
    vcpus: int
    memory_bytes: int
    kernel: str
    initrd: str
    root: str
    firmware: str
    """Of a ``q35``."""
    command_line: str
    console: str
    """File that the guest's serial console is written to."""
    share: str
    """Path of virtiofsd's socket; empty: nothing is shared."""
    cards: tuple[Card, ...]
    ports: int
    """Of a ``q35``: PCI Express ports for disks that are plugged in."""


def is_sayable(path: str) -> bool:
    """Whether a path can stand in an option: there is no way to quote a comma."""
    return "," not in path


def build(binary: str, guest: Guest) -> list[str]:
    """The argument list of a machine. Sockets are made in the working directory."""
    add = _Devices(guest.machine)
    share = "on" if guest.share else "off"
    argv = ["/usr/bin/env", _LOG_LEVEL, binary, "-name", guest.name]
    argv += ["-machine", f"{guest.machine},mem-share={share},dump-guest-core=off", "-accel", "kvm"]
    argv += ["-smp", f"cpus={guest.vcpus},maxcpus={guest.vcpus}", "-m", f"size={guest.memory_bytes // _MIB}M"]
    if guest.machine == Q35:
        argv += ["-drive", f"file={guest.firmware},if=pflash,unit=0,readonly=true"]
    argv += ["-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.command_line]
    argv += ["-qmp", f"unix:{QMP_SOCKET},server,nowait", "-serial", f"file,path={guest.console}"]
    argv += ["-chardev", f"socket,id=agent,path={AGENT_SOCKET},server,nowait"]
    argv += add("virtio-serial", "id=serial")
    # A microvm has one port, and its number 0 may only be a console's.
    port = f"virtserialport,id={PORT_NAME},chardev=agent,nr=1"
    argv += ["-device", port if guest.machine == Q35 else f"virtconsole,id={PORT_NAME},chardev=agent,nr=0"]
    argv += ["-drive", f"id={ROOT},file={guest.root},readonly=on,direct=off"]
    argv += add("virtio-blk", f"id={ROOT},drive={ROOT},serial={ROOT}")
    argv += ["-object", "rng-random,id=random,filename=/dev/urandom"]
    argv += add("virtio-rng", "id=rng,rng=random")
    argv += add("virtio-balloon", "id=balloon,deflate-on-oom=true,free-page-reporting=true")
    if guest.share:
        argv += ["-chardev", f"socket,id={SHARE},path={guest.share}"]
        argv += add("vhost-user-fs", f"id={SHARE},chardev={SHARE},tag={TAG}")
    for card in guest.cards:
        argv += _card(card, add)
    return argv + (_ports(guest.ports) if guest.machine == Q35 else [])


class _Devices:
    """Names devices as the machine has them: ``-device`` and an address on the PCI bus, or virtio-mmio."""

    def __init__(self, machine: str) -> None:
        self._slot = _FIRST_SLOT if machine == Q35 else None

    def __call__(self, kind: str, properties: str) -> list[str]:
        if self._slot is None:
            return ["-device", f"{kind}-device,{properties}"]
        self._slot += 1
        return ["-device", f"{kind}-pci,{properties},bus=pcie.0,addr={self._slot - 1:#x}"]


def _card(card: Card, add: _Devices) -> list[str]:
    fds = ":".join(str(tap) for tap in card.taps)
    queues = f",queues={len(card.taps)}" if len(card.taps) > 1 else ""
    many = ",mq=on" if len(card.taps) > 1 else ""
    backend = f"tap,id={card.name},fds={fds}{queues}"
    return ["-netdev", backend, *add("virtio-net", f"id={card.name},netdev={card.name},mac={card.mac}{many}")]


def _ports(count: int) -> list[str]:
    argv: list[str] = []
    for number in range(count):
        slot, function = divmod(number, _PORTS_PER_SLOT)
        where = f"bus=pcie.0,addr={_FIRST_PORT_SLOT + slot:#x}.{function},multifunction=on"
        argv += ["-device", f"pcie-root-port,id=port{number},port={number:#x},{where}"]
    return argv
