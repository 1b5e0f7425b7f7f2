"""The true StratoVirt 2.4, where ``KUASAR_REAL_STRATOVIRT`` names it: our command lines and commands are what it takes,
and it refuses what the stand-in refuses.

As far as the host lets it go: where KVM runs no guest, the machine exists, its monitor answers, disks are plugged in; a
q35's guest has to let go of a disk itself, so that part needs a guest that runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kuasar.backends.probing import ProbeHost
from kuasar.backends.processes import HeldProcess
from kuasar.backends.sockets import listen
from kuasar.backends.stratovirt.argv import MICROVM, build
from kuasar.backends.stratovirt.facts import find_program
from kuasar.backends.stratovirt.kernel import flat_kernel
from kuasar.core.errors import BackendFailed, Unavailable
from kuasar.core.spawn import Children
from tests.integration.stratovirt.rig import Rig, card, raw_client, read_line
from tests.needs import GUEST_IMAGE, IMAGE, ROOT

BINARY = os.environ.get("KUASAR_REAL_STRATOVIRT", "")
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
pytestmark = [
    ROOT,
    IMAGE,
    pytest.mark.real_engine,
    pytest.mark.skipif(not BINARY, reason="KUASAR_REAL_STRATOVIRT names no program"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="StratoVirt needs /dev/kvm"),
]


def with_image(rig: Rig) -> Rig:
    """The guest image's files instead of empty ones. (A q35's kernel is the firmware's to start; StratoVirt takes ELF
    files for it, too.)"""
    for name, source in (("initrd", "initrd"), ("root", "root.erofs"), ("kernel", "vmlinux")):
        (rig.directory / name).unlink()
        shutil.copy(GUEST_IMAGE / source, rig.directory / name)
    if rig.kind == MICROVM:
        os.replace(flat_kernel(f"{rig.directory}/kernel", str(rig.directory), "flat"), rig.directory / "kernel")
    return rig


@pytest.fixture
def real(rig: Rig) -> Rig:
    """A machine of either kind."""
    return with_image(rig)


@pytest.fixture
def real_microvm(microvm: Rig) -> Rig:
    """A microvm."""
    return with_image(microvm)


@pytest.fixture
def real_q35(q35: Rig) -> Rig:
    """A q35."""
    return with_image(q35)


@pytest.fixture
def share(real: Rig) -> Iterator[str]:
    """The socket of a file server."""
    if not os.path.exists(VIRTIOFSD):
        pytest.skip(f"{VIRTIOFSD} is not installed (package qemu-system-common)")
    (real.directory / "shared").mkdir()
    daemon = HeldProcess(real.host, "virtiofsd")
    with listen(str(real.directory), "virtiofsd.sock") as listener, open(real.directory / "fs.log", "wb") as log:
        argv = [VIRTIOFSD, "--fd=3", "-o", f"source={real.directory}/shared,sandbox=namespace"]
        daemon.take(partial(real.host.start_program, argv, log.fileno(), [listener.fileno()]))
    yield real.machine.share_path
    real.end()
    real.loop.run(daemon.kill(time.monotonic() + 30.0))
    daemon.release()


@pytest.fixture
def tap() -> Iterator[int]:
    """A tap of its own, with one queue."""
    from kuasar.core.taps import open_tap

    (fd,) = open_tap(f"ksv{os.getpid()}", 1)
    yield fd
    os.close(fd)


def test_its_version(real: Rig) -> None:
    children = Children(real.loop)
    try:
        found = real.loop.run(find_program(ProbeHost(children), BINARY, time.monotonic() + 30.0))
    finally:
        children.close()
    assert found.version.startswith("2.4")


def test_a_machine_with_everything(real: Rig, share: str, tap: int) -> None:
    real.boot(BINARY, share=share, fds=[tap], cards=(card(0, 3),), vcpus=2)
    real.execute("stop")  # where no guest comes up its processor keeps the program busy
    assert real.execute("query-status") == {"running": False, "singlestep": False, "status": "paused"}
    assert real.execute("query-balloon") == {"actual": 128 << 20}
    real.execute("cont")
    assert [name for name, _ in real.events] == ["STOP", "RESUME"]
    real.execute("stop")
    real.loop.run(real.machine.reconnect(time.monotonic() + 30.0))
    assert not real.execute("query-status")["running"]
    real.loop.run(real.machine.quit())
    assert real.loop.run(real.process.ended_by(time.monotonic() + 30.0))


def test_disks_of_a_microvm(real_microvm: Rig) -> None:
    rig = real_microvm
    rig.boot(BINARY)
    rig.execute("stop")
    for name in ("k1", "k2", "k3"):
        rig.plug(name)
    rig.unplug("k2")
    rig.plug("k4")
    assert [body["serial"] for _, body in rig.asked] == ["vdb", "vdc", "vdd", "vdc"]
    assert [data for name, data in rig.events if name == "DEVICE_DELETED"] == [{"device": "k2", "path": "k2"}]


def test_disks_of_a_q35(real_q35: Rig) -> None:
    rig = real_q35
    rig.boot(BINARY)
    rig.execute("stop")
    rig.plug("k1")
    rig.plug("k2")
    with pytest.raises(BackendFailed, match="Failed to add virtio pci device"):
        device = {"driver": "virtio-blk-pci", "drive": "k1", "serial": "x", "bus": "port0", "addr": "0x0"}
        rig.execute("device_add", id="k3", **device)


def test_the_channel_is_a_socket_that_takes_one_host_after_the_other(real: Rig) -> None:
    from kuasar.backends.sockets import connect

    real.boot(BINARY)
    for _ in range(2):
        with connect(str(real.directory), "agent.sock", "the port") as port:
            port.sendall(b"hello")


# -- the stand-in tells the truth --------------------------------------------------------------------------------------

REFUSALS = [
    '{"execute":"no-such","id":"1"}',
    '{"execute":"stop","id":"1","more":1}',
    '{"execute":"device_del","arguments":{"id":"x","more":1},"id":"1"}',
    '{"execute":"device_del","arguments":{"id":1},"id":"1"}',
    '{"execute":"device_del","id":"1"}',
    '{"execute":"query-status","id":7}',
    '{"execute":"query-status"',
    '{"execute":"query-status","id":"1"}{"execute":"query-status","id":"2"}',
    '{"execute":"qmp_capabilities","id":"1"}',
    '{"execute":"query-status","id":"1"}',
    '{"execute":"cont","id":"1"}',
    '{"execute":"blockdev-del","arguments":{"node-name":"none"},"id":"1"}',
    '{"execute":"device_add","arguments":{"id":"x","driver":"vhost-user-fs-pci","bus":"port0","addr":"0x0"},"id":"1"}',
    '{"execute":"device_add","arguments":{"id":"x","driver":"virtio-blk-pci","drive":"none","bus":"port0"},"id":"1"}',
]


@pytest.mark.parametrize("request_line", REFUSALS)
def test_the_stand_in_answers_alike(real: Rig, request_line: str) -> None:
    """Return or error, its class, and whether there is an id."""
    shapes = []
    for binary in (BINARY, real.stand_in()):
        real.boot(binary)
        real.machine.disconnect_monitor()
        with raw_client(real.directory) as sock:
            sock.sendall(request_line.encode() + b"\n")
            answer = json.loads(read_line(sock))
        kind = answer["error"]["class"] if "error" in answer else "return"
        shapes.append((kind, answer.get("id"), set(answer.get("return") or {})))
        real.end()
    assert shapes[0] == shapes[1]


LINES = [
    ["-no-such"],
    ["-machine", "microvm,more=on"],
    ["-machine", "pc"],
    ["-smp", "cpus=0"],
    ["-smp", "cpus=2,maxcpus=1"],
    ["-m", "size=64M"],
    ["-serial", "chardev:agent"],
    ["-device", "virtio-serial-device,id=second"],
    ["-device", "virtio-serial-pci,id=second,bus=pcie.0,addr=0x9"],
    ["-device", "virtserialport,id=second,chardev=agent,nr=0"],
    ["-device", "no-such-device,id=x"],
    ["-device", "virtio-blk-device,id=x,drive=none"],
    ["-device", "virtio-rng-device,id=x,rng=random"],
    ["-device", "vhost-user-fs-device,id=x,chardev=none,tag=t"],
    ["-device", "virtio-balloon-device,id=second"],
    ["-netdev", "tap,id=x"],
    ["-netdev", "tap,id=x,fds=3,more=1"],
    ["-drive", "id=x,file=/none"],
    ["-drive", "id=x,file=/dev/null,direct=off,aio=native"],
    ["-object", "no-such,id=x"],
    ["-accel", "tcg"],
]


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_the_stand_in_refuses_the_same_command_lines(real: Rig, words: list[str]) -> None:
    codes = []
    for binary in (BINARY, real.stand_in()):
        argv = build(binary, real.guest())
        if words[0] in argv and words[0] not in ("-device", "-netdev", "-drive", "-object"):
            at = argv.index(words[0])
            argv[at : at + 2] = words
        else:
            argv += words
        done = subprocess.run(argv, cwd=real.directory, capture_output=True, timeout=60, check=False)
        codes.append((done.returncode, bool(done.stderr)))
    assert codes[0] == codes[1] == (1, True)


def test_why_it_has_no_snapshots(real_microvm: Rig) -> None:
    """2.4.0 writes one of a microvm, and cannot start from it: the kernel is loaded before there is memory for it. When
    this fails, a newer one can, and the engine may offer it."""
    rig = real_microvm
    rig.boot(BINARY)
    rig.execute("stop")
    rig.execute("migrate", uri=f"file:{rig.directory}/snapshot")
    assert {"memory", "state"} <= set(os.listdir(rig.directory / "snapshot"))
    rig.end()
    (rig.directory / "log").unlink()
    argv = [*build(BINARY, rig.guest()), "-incoming", f"file:{rig.directory}/snapshot"]
    done = subprocess.run(argv, cwd=rig.directory, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"Failed to find matched region" in done.stderr


def test_its_own_words_reach_us(real: Rig) -> None:
    (real.directory / "root").unlink()
    with pytest.raises(Unavailable, match="StratoVirt ended before its monitor could be reached"):
        real.boot(BINARY)
    assert "No such file or directory" in real.log


def test_the_console_is_where_it_is_looked_for(real: Rig) -> None:
    real.boot(BINARY)
    assert Path(real.directory, "console").exists()
