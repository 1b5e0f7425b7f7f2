"""StratoVirt 2.4's command line, read as strictly as the vendor reads it: what is unknown, doubled, missing or of the
wrong machine is an error in its words. Written from the vendor's source, not from ours."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

# -- options -----------------------------------------------------------------------------------------------------------

FLAGS = ("S", "freeze", "mem-prealloc", "daemonize", "disable-seccomp", "battery", "no-shutdown", "nodefaults")
ONCE: tuple[str, ...] = (
    "name",
    "machine",
    "accel",
    "smp",
    "cpu",
    "m",
    "mem-path",
    "kernel",
    "initrd",
    "qmp",
    "serial",
    "pidfile",
)
ONCE += ("incoming", "mon", "D", "trace", "mod-test")
MANY = ("numa", "append", "drive", "netdev", "chardev", "device", "object", "global", "smbios")

_PCI = ("", "id", "bus", "addr", "multifunction")
DEVICES: dict[str, tuple[str, ...]] = {
    "virtio-blk": (*_PCI, "drive", "bootindex", "serial", "iothread", "num-queues", "queue-size"),
    "virtio-net": (*_PCI, "netdev", "mq", "vectors", "mac", "iothread", "queue-size"),
    "virtio-serial": (*_PCI, "max_ports"),
    "virtio-rng": (*_PCI, "max-bytes", "period", "rng"),
    "virtio-balloon": (*_PCI, "deflate-on-oom", "free-page-reporting", "auto-balloon", "membuf-percent"),
    "vhost-user-fs": (*_PCI, "tag", "chardev"),
    "vhost-vsock": (*_PCI, "guest-cid", "vhostfd"),
}
PORTS = {"virtserialport": ("", "id", "chardev", "nr"), "virtconsole": ("", "id", "chardev", "nr")}
ROOT_PORT = ("", "bus", "addr", "port", "chassis", "multifunction", "id")
DRIVE: tuple[str, ...] = (
    "file",
    "id",
    "readonly",
    "direct",
    "format",
    "if",
    "throttling.iops-total",
    "aio",
    "media",
    "discard",
)
DRIVE += ("detect-zeroes", "l2-cache-size", "refcount-cache-size")
PFLASH = ("file", "if", "unit", "readonly")
NETDEV = ("", "id", "fd", "fds", "vhost", "ifname", "vhostfd", "vhostfds", "queues", "chardev")
CHARDEV = ("", "id", "path", "host", "port", "server", "nowait")
SMP = ("", "maxcpus", "sockets", "dies", "clusters", "cores", "threads", "cpus")
MACHINE = ("", "type", "accel", "usb", "dump-guest-core", "mem-share")
_TRUE, _FALSE = ("true", "on", "yes", "unmap"), ("false", "off", "no", "ignore")
_MIB = 1024 * 1024
_SMALLEST_FIRMWARE = 0x20000
MICROVM_DISKS, MICROVM_NICS = 4, 2
MAX_SOCKET_PATH = 107


class CannotStart(Exception):
    """The program ends with these words."""


@dataclass
class Drive:
    """A block backend."""

    path: str
    read_only: bool


@dataclass
class Machine:
    """What the command line asks for."""

    kind: str = "microvm"
    shares_memory: bool = False
    vcpus: int = 1
    max_vcpus: int = 1
    memory_bytes: int = 256 * _MIB
    kernel: str = ""
    initrd: str = ""
    command_line: str = ""
    firmware: str = ""
    qmp: str = ""
    console: str = ""
    drives: dict[str, Drive] = field(default_factory=dict)
    netdevs: dict[str, list[int]] = field(default_factory=dict)
    chardevs: dict[str, dict[str, str]] = field(default_factory=dict)
    randoms: set[str] = field(default_factory=set)
    serial: bool = False
    port: tuple[str, str, bool] | None = None
    """Name, socket, whether it is a console's."""
    disks: list[tuple[str, str, Drive]] = field(default_factory=list)
    """Id, serial, backend."""
    cards: list[tuple[str, str, list[int]]] = field(default_factory=list)
    """Id, MAC, taps."""
    share: tuple[str, str] | None = None
    """Tag, socket."""
    balloon: bool = False
    ports: list[str] = field(default_factory=list)
    """Ids of the root ports."""
    ids: set[str] = field(default_factory=set)
    slots: dict[str, str] = field(default_factory=dict)

    @property
    def is_standard(self) -> bool:
        return self.kind == "q35"


def split(words: Sequence[str]) -> dict[str, list[str]]:
    """Options and their values, as the vendor's parser takes them apart."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("-"):
            name = word[1:]
            if name not in (*FLAGS, *ONCE, *MANY):
                raise _unexpected(word)
            if name in found and name not in MANY:
                raise CannotStart(f"The argument '{name}' was provided more than once, but cannot be")
            found.setdefault(name, [])
        elif not name or name in FLAGS or (name in ONCE and found[name]):
            raise _unexpected(word)
        else:
            found[name].append(word)
    missing = [name for name, values in found.items() if not values and name not in (*FLAGS, "D")]
    if missing:
        raise CannotStart(f"The argument '{missing[0]}' requires a value but none was supplied")
    return found


def fields(text: str, known: Sequence[str], what: str) -> dict[str, str]:
    """``a,b=c,d`` as the vendor's ``CmdParser`` reads it."""
    if text.startswith(",") or text.endswith(","):
        raise CannotStart(f"Invalid parameter '{text}' for '{what}'")
    values: dict[str, str] = {}
    for index, item in enumerate(text.split(",")):
        if item.startswith("=") or item.endswith("="):
            raise CannotStart(f"Invalid parameter '{item}' for '{what}'")
        key, sign, value = item.partition("=")
        if not sign:
            key, value = ("", item) if index == 0 else (item, "")
        if key not in known:
            raise CannotStart(f"Invalid parameter '{key}' for '{what}'")
        if key in values:
            raise CannotStart(f"Input field '{key}' in {what} is offered more than once.")
        values[key] = value
    return values


def parse(words: Sequence[str]) -> Machine:
    """The machine, with all its devices. Raises :class:`CannotStart`."""
    found = split(words)
    machine = Machine()
    one = {name: values[0] for name, values in found.items() if values and name not in MANY}
    _machine(machine, one.get("machine", "microvm"))
    if fields(one.get("accel", "kvm"), ("",), "accel")[""] != "kvm":
        raise CannotStart("Only 'kvm' is supported for 'accel'")
    memory = fields(one.get("m", "256"), ("", "size"), "m")
    machine.memory_bytes = _size(memory.get("") or memory.get("size", ""))
    if not 128 * _MIB <= machine.memory_bytes <= 512 * 1024 * _MIB:
        raise CannotStart(f"Memory size must >= 128MiB and <= 512GiB, default unit: MiB: {machine.memory_bytes} bytes")
    _cpus(machine, one.get("smp", "1"))
    machine.kernel = _file(one.get("kernel", ""))
    machine.initrd = _file(one.get("initrd", ""))
    machine.command_line = " ".join(found.get("append", []))
    _serial(machine, one.get("serial", ""))  # read before the chardevs: it can name none of them
    for text in found.get("drive", []):
        _drive(machine, text)
    for text in found.get("object", []):
        _object(machine, text)
    for text in found.get("netdev", []):
        _netdev(machine, text)
    for text in found.get("chardev", []):
        _chardev(machine, text)
    _qmp(machine, one.get("qmp", ""))
    _check(machine)
    for text in found.get("device", []):
        _device(machine, text)
    return machine


def _unexpected(word: str) -> CannotStart:
    words = "which wasn't expected, or isn't valid in the context. Use '-h' or '-help' to get usage."
    return CannotStart(f"Found argument '{word}' {words}")


def _check(machine: Machine) -> None:
    if not machine.kernel and not machine.is_standard:
        raise CannotStart("kernel file is required for microvm machine type, which is not provided")
    if machine.is_standard and not machine.firmware:
        raise CannotStart("the stand-in's q35 does not boot without a firmware")
    if machine.is_standard and os.path.getsize(machine.firmware) < _SMALLEST_FIRMWARE:
        raise CannotStart("Add pflash device Failed: Invalid argument (os error 22)")


def _flag(text: str, name: str) -> bool:
    if text not in (*_TRUE, *_FALSE):
        raise CannotStart(f"Unable to parse '{name}' for '{text}'")
    return text in _TRUE


def _size(text: str) -> int:
    units = {"K": 1024, "M": _MIB, "G": 1024 * _MIB}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, _MIB)
    if not number.isdigit():
        raise CannotStart(f"Unable to parse '{text}' for 'u64'")
    return int(number) * unit


def _file(path: str) -> str:
    if path and not os.path.isfile(path):
        raise CannotStart(f"File {path} does not exist")
    return path


def _machine(machine: Machine, text: str) -> None:
    values = fields(text, MACHINE, "machine")
    machine.kind = values.get("type") or values.get("", "microvm")
    if machine.kind not in ("microvm", "q35"):
        raise CannotStart("Unrecognized machine type")
    machine.shares_memory = _flag(values.get("mem-share", "off"), "mem-share")
    _flag(values.get("dump-guest-core", "on"), "dump-guest-core")


def _cpus(machine: Machine, text: str) -> None:
    values = fields(text, SMP, "smp")
    count = values.get("") or values.get("cpus", "")
    most = values.get("maxcpus", count)
    if not count.isdigit() or not most.isdigit() or not 1 <= int(count) <= 254:
        raise CannotStart("CPU number must >= 1 and <= 254.")
    if not int(count) <= int(most) <= 254:
        raise CannotStart(f"maxcpus must >= {count} and <= 254.")
    machine.vcpus, machine.max_vcpus = int(count), int(most)


def _serial(machine: Machine, text: str) -> None:
    if text.startswith("chardev:"):
        raise CannotStart(f'Chardev "{text.removeprefix("chardev:")}" not found or is in use')
    if text:
        values = fields(text, CHARDEV, "chardev")
        if values.get("") != "file" or not values.get("path"):
            raise CannotStart("the stand-in's serial goes to a file")
        machine.console = values["path"]


def _qmp(machine: Machine, text: str) -> None:
    values = fields(text, ("", "server", "nowait"), "qmp") if text else {}
    uri = values.get("", "")
    if not uri.startswith("unix:"):
        raise CannotStart("Please use '-qmp' or '-mon' to give a qmp path for Unix socket")
    for name in ("server", "nowait"):
        if name not in values:
            raise CannotStart(f"Argument '{name}' is needed for qmp")
    machine.qmp = uri.removeprefix("unix:")


def _drive(machine: Machine, text: str) -> None:
    if "if=pflash" in text.split(","):
        values = fields(text, PFLASH, "pflash")
        if not machine.is_standard:
            raise CannotStart("Pflash device is not supported!")
        machine.firmware = _file(values["file"])
        return
    values = fields(text, DRIVE, "drive")
    for name in ("id", "file"):
        if name not in values:
            raise CannotStart(f"'{name}' is missing for 'blk' device.")
    direct = _flag(values.get("direct", "on"), "direct")
    check_disk(values["file"], direct, values.get("aio", "native" if direct else "off"))
    if values["id"] in machine.drives:
        raise CannotStart(f"Drive {values['id']} has been added")
    machine.drives[values["id"]] = Drive(values["file"], _flag(values.get("readonly", "off"), "readonly"))


def check_disk(path: str, direct: bool, aio: str) -> None:
    """What the vendor asks of a block backend. Raises :class:`CannotStart`."""
    if aio == "native" and not direct:
        raise CannotStart("Invalid parameter 'aio' for 'native aio type should be used with \"direct\" on'")
    if aio == "off" and direct:
        raise CannotStart("Invalid parameter 'aio' for 'low performance expected when use sync io with \"direct\" on'")
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise CannotStart(f"Failed to get metadata of file {path}: {exc.strerror} (os error {exc.errno}).") from exc
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise CannotStart(f"{path} is not a regular file or block device.")


def _object(machine: Machine, text: str) -> None:
    if not text.startswith("rng-random,"):
        raise CannotStart(f"Unknow object type: {text.partition(',')[0]!r}")
    values = fields(text, ("", "id", "filename"), "rng-object")
    if not os.path.exists(values["filename"]):
        raise CannotStart(f"File {values['filename']} does not exist")
    machine.randoms.add(values["id"])


def _netdev(machine: Machine, text: str) -> None:
    values = fields(text, NETDEV, "netdev")
    if values.get("") != "tap" or "id" not in values:
        raise CannotStart(f"Unsupported netdev type: {values.get('')!r}")
    given = values.get("fd") or values.get("fds")
    if not given:
        raise CannotStart("Tap device is missing, use 'ifname' or 'fd' to configure a tap device")
    numbers = [int(number) for number in given.split(":")]
    for number in numbers:
        os.fstat(number)
    machine.netdevs[values["id"]] = numbers


def _chardev(machine: Machine, text: str) -> None:
    values = fields(text, CHARDEV, "chardev")
    if values.get("") != "socket" or not values.get("path") or "id" not in values:
        raise CannotStart("the stand-in has sockets for chardevs")
    if values["id"] in machine.chardevs:
        raise CannotStart(f"Chardev {values['id']!r} has been added")
    machine.chardevs[values["id"]] = values


def _take_chardev(machine: Machine, name: str) -> dict[str, str]:
    if name not in machine.chardevs:
        raise CannotStart(f"Chardev: {name!r} not found for character device")
    return machine.chardevs.pop(name)


# -- devices -----------------------------------------------------------------------------------------------------------


def _device(machine: Machine, text: str) -> None:
    driver = text.partition(",")[0]
    if driver in PORTS:
        _serial_port(machine, driver, fields(text, PORTS[driver], "virtserialport"))
        return
    if driver == "pcie-root-port":
        values = fields(text, ROOT_PORT, "pcie-root-port")
        _place(machine, values)
        if "port" not in values:
            raise CannotStart("'port' is missing for 'rootport' device.")
        machine.ports.append(values["id"])
        return
    kind, _, transport = driver.rpartition("-")
    if kind not in DEVICES or transport not in ("device", "pci"):
        raise CannotStart(f"Unsupported device: {driver!r}")
    values = fields(text, DEVICES[kind], kind)
    if transport == "device":
        if machine.is_standard:
            raise CannotStart("Virtio mmio devices Not supported!")
        for name in ("bus", "addr", "multifunction"):
            if name in values:
                raise CannotStart(f"virtio mmio device does not support {name} arguments")
    else:
        _place(machine, values)
    _add(machine, kind, values)


def _place(machine: Machine, values: dict[str, str]) -> None:
    """On the PCI bus, where nobody else is."""
    if not machine.is_standard:
        raise CannotStart("No pci host found")
    if "bus" not in values:
        raise CannotStart("Bus not specified for pci device")
    if "addr" not in values:
        raise CannotStart("No addr found for pci device")
    if values["bus"] != "pcie.0":
        raise CannotStart(f"Parent bus :{values['bus']} not found")
    name = values.get("id", "")
    if not name:
        raise CannotStart("Device id is empty")
    if name in machine.ids:
        raise CannotStart(f"Device id {name} existed")
    slot, _, function = values["addr"].partition(".")
    where = f"{int(slot, 0)}.{int(function or '0', 0)}"
    if int(slot, 0) > 31 or int(function or "0", 0) > 7:
        raise CannotStart("Failed to get addr")
    if where in machine.slots:
        raise CannotStart(f'Devfn {where} has been used by "{machine.slots[where]}"')
    machine.ids.add(name)
    machine.slots[where] = name


def _serial_port(machine: Machine, driver: str, values: dict[str, str]) -> None:
    if not machine.serial:
        raise CannotStart("No virtio serial device specified")
    number = int(values.get("nr", "0" if driver == "virtconsole" else "1"))
    if number == 0 and driver == "virtserialport":
        raise CannotStart("Port number 0 on virtio-serial devices reserved for virtconsole device.")
    most = 31 if machine.is_standard else 1
    if number >= most:
        raise CannotStart(f"virtio serial port nr {number} should be less than virtio serial's max_nr_ports {most}")
    if machine.port is not None:
        raise CannotStart(f"Repetitive virtio serial port nr {number}.")
    chardev = _take_chardev(machine, values.get("chardev", ""))
    if "server" not in chardev or "nowait" not in chardev:
        raise CannotStart(f"Argument 'server' and 'nowait' are both required for chardev '{chardev['id']}'")
    machine.port = (values["id"], chardev["path"], driver == "virtconsole")


def _add(machine: Machine, kind: str, values: dict[str, str]) -> None:
    if kind == "virtio-serial":
        if machine.serial:
            raise CannotStart("Only one virtio serial device is supported")
        machine.serial = True
    elif kind == "virtio-blk":
        add_disk(machine, values, machine.drives)
    elif kind == "virtio-net":
        _add_card(machine, values)
    elif kind == "virtio-rng":
        if values.get("rng") not in machine.randoms:
            raise CannotStart("Object for rng-random device not found")
        machine.randoms.discard(values["rng"])
    elif kind == "virtio-balloon":
        if machine.balloon:
            raise CannotStart("Only one balloon device is supported for each vm.")
        machine.balloon = True
    elif kind == "vhost-user-fs":
        _add_share(machine, values)
    else:
        raise CannotStart("Failed to open /dev/vhost-vsock")


def add_disk(machine: Machine, values: dict[str, str], drives: dict[str, Drive]) -> None:
    """A disk on one of ``drives``, which it takes. Raises :class:`CannotStart`."""
    if "drive" not in values:
        raise CannotStart("'drive' is missing for 'blk' device.")
    if "id" not in values:
        raise CannotStart("No id configured for blk device")
    if values["drive"] not in drives:
        raise CannotStart("No drive configured matched for blk device")
    if len(values.get("serial", "")) > 20:
        raise CannotStart("Input drive serial number string's length must be no more than 20.")
    if not machine.is_standard and len(machine.disks) >= MICROVM_DISKS:
        raise CannotStart(f"A maximum of {MICROVM_DISKS} block replaceable devices are supported.")
    machine.disks.append((values["id"], values.get("serial", ""), drives.pop(values["drive"])))


def _add_card(machine: Machine, values: dict[str, str]) -> None:
    if values.get("netdev") not in machine.netdevs:
        raise CannotStart(f"Netdev: {values.get('netdev')!r} not found for net device")
    mac = values.get("mac", "")
    if mac and (len(mac) != 17 or not all(len(part) == 2 for part in mac.split(":"))):
        raise CannotStart("Mac address is illegal.")
    taps = machine.netdevs.pop(values["netdev"])
    if not machine.is_standard and len(machine.cards) >= MICROVM_NICS:
        raise CannotStart(f"A maximum of {MICROVM_NICS} net replaceable devices are supported.")
    if not machine.is_standard and len(taps) > 1:
        raise CannotStart("Failed to create tap: a microvm has no multi-queue")
    machine.cards.append((values.get("id", ""), mac, taps))


def _add_share(machine: Machine, values: dict[str, str]) -> None:
    for name in ("tag", "id"):
        if name not in values:
            raise CannotStart(f"'{name}' is missing for 'virtio-fs' device.")
    if not machine.shares_memory:
        raise CannotStart(
            "When configuring the vhost-user-fs-device or vhost-user-fs-pci device, the memory must be shared."
        )
    chardev = _take_chardev(machine, values.get("chardev", ""))
    if "server" in chardev or "nowait" in chardev:
        raise CannotStart(f"Argument 'server' or 'nowait' is not need for chardev '{chardev['path']}'")
    path = os.path.realpath(chardev["path"])  # as the vendor does with what is there already
    if len(os.fsencode(path)) > MAX_SOCKET_PATH or not stat.S_ISSOCK(os.stat(path).st_mode):
        raise CannotStart("Failed to create the client which communicates with the server for virtio fs")
    machine.share = (values["tag"], path)


def listen(path: str) -> socket.socket:
    """A socket of the program's own; a relative path is below its working directory. Raises :class:`CannotStart`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.lexists(path):
        os.unlink(path)
    try:
        listener.bind(path)
    except OSError as exc:
        raise CannotStart(f'Failed to bind socket for path: "{path}": {exc.strerror}') from exc
    listener.listen()
    os.chmod(path, 0o600)
    return listener
