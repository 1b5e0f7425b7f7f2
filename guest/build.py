"""``python -m guest.build``: makes the guest image from Debian packages and our own code.

Everything is below ``<checkout>/.kuasar/guest``: packages and their trees, the root directory, and in ``image`` the
result. The network is needed only when packages are fetched (the first time, when the recipe's list changed, with
``--refresh``). The same packages and the same code give the same bytes; ``SOURCE_DATE_EPOCH`` overrides the date in
them, which is that of the kernel package. A file that did not change is left alone, and one that did is replaced
whole, so running guests keep what they have. One build at a time works in a directory; others wait for it.
"""

from __future__ import annotations

import argparse
import fcntl
import filecmp
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from guest import image, manifest, packages, recipe, tree
from guest.closure import KernelModules, Unpacked
from guest.packages import BuildFailed
from kuasar.backends.guest_image import Package

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_SECTOR = 512


def build(work: str, output: str, say: Callable[[str], None], refresh: bool = False) -> manifest.Image:
    """Make the image in ``output``, with everything it is made from in ``work``. Raises :class:`BuildFailed`."""
    os.makedirs(work, exist_ok=True)
    with open(f"{work}/.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(work, output, say, refresh)


def _build(work: str, output: str, say: Callable[[str], None], refresh: bool) -> manifest.Image:
    tree_directory, versions = packages.provide(work, say, refresh)
    unpacked = Unpacked(tree_directory)
    release = _only(f"{tree_directory}/lib/modules")
    modules_from = f"{tree_directory}/lib/modules/{release}"
    bzimage = f"{tree_directory}/boot/vmlinuz-{release}"
    kernel = KernelModules(modules_from)
    epoch = _epoch(bzimage)
    fresh, root = f"{work}/image.new", f"{work}/root"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh)
    say("root file system: agent, Python, crun, kernel modules")
    tree.write_root(root, _CHECKOUT, unpacked, kernel, modules_from)
    say("root disk")
    image.write_root_disk(f"{fresh}/{manifest.ROOT_DISK}", root, unpacked, epoch)
    say("initial memory disk")
    image.write_initrd(f"{fresh}/{manifest.INITRD}", unpacked, kernel, modules_from, epoch)
    say(f"kernel {release}")
    image.write_kernel(f"{fresh}/{manifest.KERNEL}", bzimage, unpacked)
    made = _describe(fresh, release, epoch, versions)
    _publish(fresh, output, made)
    return made


def _only(directory: str) -> str:
    names = os.listdir(directory)
    if len(names) != 1:
        raise BuildFailed(f"one kernel is expected in {directory}, there are: {', '.join(sorted(names)) or 'none'}")
    return names[0]


def _epoch(bzimage: str) -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return int(os.stat(bzimage).st_mtime)
    if not text.isdecimal():
        raise BuildFailed(f"SOURCE_DATE_EPOCH is no number of seconds: {text!r:.40}")
    return int(text)


def _describe(fresh: str, release: str, epoch: int, versions: Sequence[Package]) -> manifest.Image:
    files = {name: manifest.describe(f"{fresh}/{name}") for name in sorted(os.listdir(fresh))}
    disk = files[manifest.ROOT_DISK]
    size = sum(file.bytes for file in files.values())
    if size > recipe.MAX_IMAGE_BYTES:
        raise BuildFailed(f"the image has {size} bytes, more than the {recipe.MAX_IMAGE_BYTES} that are allowed")
    words = (*recipe.KERNEL_OPTIONS, "root=/dev/vda", "rootfstype=erofs", f"kuasar.disk={disk.bytes // _SECTOR}")
    return manifest.Image(release, " ".join(words), epoch, files, versions)


def _publish(fresh: str, output: str, made: manifest.Image) -> None:
    """Put the files in place. Between the first rename and the last the old description says that they are damaged, and
    nobody boots half of each."""
    os.makedirs(output, exist_ok=True)
    for name in made.files:
        source, target = f"{fresh}/{name}", f"{output}/{name}"
        if not (os.path.exists(target) and filecmp.cmp(source, target, shallow=False)):
            os.replace(source, target)
    manifest.write(output, made)
    shutil.rmtree(fresh)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m guest.build", description="Make the guest image of the microVM engines."
    )
    parser.add_argument("--work", default=f"{_CHECKOUT}/.kuasar/guest", help="where packages and trees are kept")
    parser.add_argument("--output", help="where the image goes (default: image in the former)")
    parser.add_argument("--refresh", action="store_true", help="fetch the packages again, newest versions")
    options = parser.parse_args()
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"==> [{time.monotonic() - started:5.1f} s] {step}", file=sys.stderr, flush=True)

    output = options.output or f"{options.work}/image"
    try:
        made = build(options.work, output, say, options.refresh)
    except (BuildFailed, OSError) as exc:
        print(f"the guest image cannot be built: {exc}", file=sys.stderr)
        return 1
    sizes = ", ".join(f"{name} {file.bytes / 2**20:.1f} MiB" for name, file in made.files.items())
    say(f"{output}: {sizes}; digest {made.digest[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
