"""What an engine of machines is given wrongly, or does wrongly itself: the reason reaches the caller and nothing
stays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
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


def test_a_guest_that_panics_at_boot_is_told_by_its_own_words() -> None:
    message = refusal(seconds=60.0, kernel_arguments="root=/dev/vdz init=/nothing")
    assert "the machine has no root disk /dev/vdz" in message
