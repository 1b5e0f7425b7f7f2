"""What an engine of machines is given wrongly, or does wrongly itself: the reason reaches the caller and nothing
stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kuasar.core.errors import KuasarError
from tests import needs
from tests.integration.net.wires import Namespace
from tests.integration.workers.rig import Rig, rig, run

pytestmark = needs.MACHINES

IMAGE = needs.GUEST_IMAGE
SAYS_ITS_VERSION = 'case $1 in --version) echo "QEMU emulator version 7.2.22"; exit 0;; esac\n'


def engine(r: Rig, **settings: str | bool) -> None:
    """Add the engine ``odd`` to the configuration. What is wrong must not be hidden by a template."""
    values = {"image": str(IMAGE), "accel": "tcg", "template": False, "cache_dir": f"{r.root}/cache/odd", **settings}
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()
    ]
    r.config.write_text("\n".join([r.config.read_text(), '[engines.odd]\nkind = "qemu"', *lines, ""]).replace("'", '"'))


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that the unprivileged user of a machine may look into."""
    with tempfile.TemporaryDirectory(prefix="kuasar-test-", dir="/run") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def script(directory: Path, text: str) -> str:
    """A program in the place of QEMU."""
    path = directory / "odd-qemu"
    path.write_text("#!/bin/sh\n" + SAYS_ITS_VERSION + text)
    path.chmod(0o755)
    return str(path)


def refusal(seconds: float = 20.0, **settings: str | bool) -> str:
    """The message with which a start fails on such an engine; nothing of it is left, and the sandbox can go."""

    async def scenario(netns: str) -> str:
        async with rig() as r:
            engine(r, **settings)
            r.seconds = seconds
            await r.start_zygote()
            await r.start_worker()
            pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
            await r.create(engine="odd", netns=netns, config=pod)
            with pytest.raises(KuasarError) as refused:
                await r.call("sandbox.start")
            r.seconds = 20.0
            await r.nothing_held()
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            await r.call("sandbox.shutdown")
            return refused.value.message

    namespace = Namespace("pod")
    try:
        return run(scenario(namespace.path), seconds=120)
    finally:
        namespace.remove()


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    message = refusal(image=str(tmp_path))
    assert f"the guest image cannot be used: {tmp_path}/image.json: No such file" in message
    assert "has the guest image been built?" in message


@pytest.mark.parametrize("name", ["vmlinux", "initrd", "root.erofs"])
def test_a_truncated_file_of_the_image_is_named(tmp_path: Path, name: str) -> None:
    for file in IMAGE.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes((IMAGE / name).read_bytes()[:-1])
    assert f"{tmp_path}/{name} is truncated" in refusal(image=str(tmp_path))


def test_a_missing_kernel_of_the_operators_own_is_named() -> None:
    assert "the guest kernel /no/such/kernel does not exist" in refusal(kernel="/no/such/kernel")


def test_a_missing_qemu_is_named() -> None:
    assert "QEMU is not there: /no/such/qemu cannot be found" in refusal(binary="/no/such/qemu")


def test_a_missing_virtiofsd_is_named() -> None:
    assert "virtiofsd" in refusal(virtiofsd="/no/such/virtiofsd")


def test_what_qemu_says_at_its_failing_start_is_told(public: Path) -> None:
    binary = script(public, "echo 'odd-qemu: the moon is too bright' >&2; exit 1")
    assert "the moon is too bright" in refusal(binary=binary)


def test_a_qemu_that_its_user_may_not_execute_is_named(tmp_path: Path) -> None:
    binary = script(tmp_path, "exit 1")
    tmp_path.chmod(0o700)
    assert f"cannot start {binary}: [Errno 13] Permission denied" in refusal(binary=binary)


def test_a_qemu_that_does_not_answer_ends_at_the_deadline(public: Path) -> None:
    binary = script(public, "exec sleep 3600")
    assert "connecting to QEMU did not finish in time" in refusal(seconds=40.0, binary=binary)


def test_a_guest_that_never_answers_ends_at_the_deadline(public: Path) -> None:
    """QEMU is there and its machine stands still, for the minute that a start may take."""
    qemu = shutil.which("qemu-system-x86_64")
    message = refusal(seconds=80.0, binary=script(public, f'exec {qemu} "$@" -S'))
    assert "the agent of the machine does not answer" in message


def test_a_damaged_template_is_set_aside_and_the_pod_boots(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(needs.GUEST_IMAGE.parents[1] / "qemu" / "templates", templates)
    damaged = [path for path in templates.iterdir() if path.is_dir() and not path.suffix]
    for path in damaged:
        with open(path / "state", "r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(bytes([first[0] ^ 1]))

    async def scenario(netns: str) -> None:
        async with rig() as r:
            engine(r, template=True, cache_dir=str(tmp_path))
            r.seconds = 90.0
            await r.start_zygote()
            await r.start_worker()
            pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
            await r.create(engine="odd", netns=netns, config=pod)
            await r.call("sandbox.start")
            status = await r.call("sandbox.status", key="", verbose=True)
            assert status["info"]["start"].startswith("boot: there is no template of its kind yet")
            assert list(templates.glob("*.bad"))
            await r.call("sandbox.shutdown")
            await r.nothing_held()

    namespace = Namespace("pod")
    with ExitStack() as held:
        held.callback(namespace.remove)
        for path in templates.glob("*.lock"):  # else a maker would be at work when the test is over
            fcntl.flock(held.enter_context(path.open()), fcntl.LOCK_EX)
        run(scenario(namespace.path), seconds=150)


def test_a_guest_that_panics_at_boot_is_told_by_its_own_words() -> None:
    message = refusal(seconds=60.0, kernel_arguments="root=/dev/vdz init=/nothing")
    assert "the machine has no root disk /dev/vdz" in message


def test_a_channel_that_is_not_there_is_refused_with_the_reason(public: Path) -> None:
    message = refusal(channel="vhost-user-vsock", vhost_device_vsock="/no/such/daemon")
    assert 'channel = "vhost-user-vsock" cannot be used: there is no program /no/such/daemon' in message


@pytest.mark.skipif(os.path.exists("/dev/vhost-vsock"), reason="this host has a vsock")
def test_a_host_without_a_vsock_is_told() -> None:
    message = refusal(channel="vsock")
    assert 'channel = "vsock" cannot be used: /dev/vhost-vsock: No such file or directory' in message


def test_what_the_daemon_of_a_vsock_says_at_its_failing_start_is_told(public: Path) -> None:
    daemon = script(public, "echo 'odd-daemon: no moon tonight' >&2; exit 1")
    message = refusal(channel="vhost-user-vsock", vhost_device_vsock=daemon)
    assert "the vsock daemon (vhost-device-vsock) ended at its start; odd-daemon: no moon tonight" in message


def test_a_daemon_of_a_vsock_that_does_not_listen_ends_at_the_deadline(public: Path) -> None:
    daemon = script(public, "exec sleep 3600")
    assert "does not listen" in refusal(channel="vhost-user-vsock", vhost_device_vsock=daemon)
