"""The build gives the same bytes each time, and what is in them is what was meant."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import build, manifest, recipe
from guest.closure import KernelModules, Unpacked
from guest.packages import BuildFailed
from tests.integration.guest.conftest import WORK, Built, needs_root

NOT_THERE = {"bash", "dash", "login", "su", "sudo", "getty", "sshd", "telnetd", "httpd", "passwd", "insmod", "reboot"}


@pytest.fixture(scope="module")
def content(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root disk's files, taken out of it by the package's own tool, which checks it on the way."""
    target = tmp_path_factory.mktemp("content") / "root"
    command = Unpacked(str(WORK / "unpacked")).command("usr/bin/fsck.erofs", f"--extract={target}")
    subprocess.run([*command, str(built.root_disk)], check=True, capture_output=True, timeout=60)
    yield target
    shutil.rmtree(target)


@pytest.fixture
def another_place(tmp_path: Path) -> Path:
    """A work directory elsewhere, with the packages that are there already."""
    for name in ("packages", "unpacked"):
        (tmp_path / name).symlink_to(WORK / name)
    return tmp_path


def test_another_build_elsewhere_gives_the_same_bytes(built: Built, another_place: Path) -> None:
    made = build.build(str(another_place), str(another_place / "image"), lambda step: None)
    assert made.files == built.image.files
    assert made.digest == built.image.digest


def test_the_date_is_that_of_the_environment(
    built: Built, another_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    made = build.build(str(another_place), str(another_place / "image"), lambda step: None)
    assert made.source_date_epoch == 1000000000
    assert made.digest != built.image.digest
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(BuildFailed, match="SOURCE_DATE_EPOCH is no number of seconds: 'yesterday'"):
        build.build(str(another_place), str(another_place / "image"), lambda step: None)


def test_a_build_without_changes_leaves_the_files_alone(built: Built) -> None:
    before = {name: os.stat(built.directory / name).st_ino for name in built.image.files}
    build.build(str(WORK), str(built.directory), lambda step: None)
    assert {name: os.stat(built.directory / name).st_ino for name in built.image.files} == before


def test_all_together_is_small(built: Built) -> None:
    assert sum(file.bytes for file in built.image.files.values()) <= 64 * 2**20


def test_nothing_in_the_root_is_special_or_writable(content: Path) -> None:
    for parent, folders, names in os.walk(content):
        for name in (*folders, *names):
            path = Path(parent, name)
            found = path.lstat()
            where = path.relative_to(content)
            assert (found.st_uid, found.st_gid) == (0, 0), where
            if stat.S_ISLNK(found.st_mode):
                continue
            assert stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode), where
            assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH), where


def test_the_programs_are_those_of_the_recipe(content: Path) -> None:
    executable = {
        str(path.relative_to(content))
        for path in content.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o111
    }
    programs = {*recipe.PROGRAMS, f"usr/{recipe.BUSYBOX}"}
    assert executable == {*programs, *recipe.SCRIPTS, "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"}
    assert not NOT_THERE & {path.name for path in (content / "usr").rglob("*")}


def test_links_lead_to_what_is_there(content: Path) -> None:
    for path in content.rglob("*"):
        if path.is_symlink():
            assert not path.readlink().is_absolute(), path
            assert path.exists(), path
            assert path.resolve().is_relative_to(content.resolve()), path


def test_no_source_and_no_tests_of_python_are_there(content: Path) -> None:
    assert not [path for path in content.rglob("*") if path.suffix == ".py" or path.name == "__pycache__"]
    assert not list((content / recipe.STDLIB).rglob("test"))  # elsewhere, busybox has a program of that name
    assert (content / recipe.STDLIB / "kuasar/agent/main.pyc").is_file()
    assert not (content / recipe.STDLIB / "kuasar/workers").exists()


@needs_root
def test_the_agent_is_importable_by_the_guests_own_python(content: Path) -> None:
    program = "import guest.pid1.boot, kuasar.agent.main, kuasar.agent.drivers.oci, sys; print(sys.version_info[:2])"
    command = ["chroot", str(content), "/usr/bin/python3.11", "-I", "-S", "-B", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "(3, 11)\n"), done.stderr


@needs_root
def test_an_operator_has_programs(content: Path) -> None:
    """Those of the task, by their names, from a root without anything else."""
    names = ("sh", "ps", "cat", "ls", "ip", "dmesg", "mount", "free", "netstat", "vi")
    assert all((content / "usr/bin" / name).readlink() == Path("busybox") for name in names)
    command = ["chroot", str(content), "/bin/sh", "-c", "echo $((6 * 7)) | tr 4 5; ls -d /usr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "52\n/usr\n"), done.stderr


@needs_root
@pytest.mark.parametrize("program", recipe.PROGRAMS)
def test_programs_have_all_their_libraries(content: Path, program: str) -> None:
    command = ["chroot", str(content), "/lib64/ld-linux-x86-64.so.2", "--list", f"/{program}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "not found" not in done.stdout


def test_modules_come_after_what_they_need(content: Path) -> None:
    directory = content / "usr/lib/modules"
    needs = {line.split()[0]: line.split()[1:] for line in (directory / "needs").read_text().splitlines()}
    at_boot = (directory / "at-boot").read_text().split()
    assert {path.stem for path in directory.glob("*.ko")} == set(needs)
    assert at_boot.index("fuse") < at_boot.index("virtiofs")
    seen: set[str] = {"virtio", "virtio_ring"}  # loaded before the root disk
    for name in at_boot:
        assert set(needs[name]) <= seen, name
        seen.add(name)
    assert "libcrc32c" in needs["xfs"]


def test_a_module_that_the_kernel_does_not_have_is_named() -> None:
    kernel = KernelModules(str(next((WORK / "unpacked/lib/modules").iterdir())))
    with pytest.raises(BuildFailed, match="the kernel has no module no_such_thing"):
        kernel.in_order(["no-such-thing"])


def test_a_missing_kernel_is_named(built: Built, tmp_path: Path) -> None:
    for name in (manifest.NAME, manifest.INITRD, manifest.ROOT_DISK):
        shutil.copy(built.directory / name, tmp_path)
    with pytest.raises(manifest.ImageUnusable, match=f"{tmp_path}/vmlinux: No such file or directory"):
        manifest.load(str(tmp_path))


def test_a_truncated_image_is_named(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.directory, tmp_path, dirs_exist_ok=True)
    size = built.image.files[manifest.ROOT_DISK].bytes
    os.truncate(tmp_path / manifest.ROOT_DISK, size - 1)
    with pytest.raises(manifest.ImageUnusable, match=rf"root\.erofs is truncated: {size - 1} bytes of {size}"):
        manifest.load(str(tmp_path))


def test_a_flipped_byte_is_found_when_looked_for(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.directory, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / manifest.ROOT_DISK, "r+b") as file:
        file.seek(5 << 20)
        byte = file.read(1)
        file.seek(5 << 20)
        file.write(bytes([byte[0] ^ 1]))
    assert manifest.load(str(tmp_path)).digest == built.image.digest
    with pytest.raises(manifest.ImageUnusable, match=r"root\.erofs is damaged"):
        manifest.load(str(tmp_path), digests=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is damaged: JSONDecodeError"), ('{"format": 2}', "its format is 2, not 1"), ("[]", "is damaged")],
)
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(manifest.ImageUnusable, match=message):
        manifest.load(str(tmp_path))


def test_no_image_says_that_it_may_not_have_been_built(tmp_path: Path) -> None:
    with pytest.raises(manifest.ImageUnusable, match="has the guest image been built"):
        manifest.load(str(tmp_path))
