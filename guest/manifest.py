"""Writing ``image.json`` (``kuasar/backends/guest_image.py`` reads it), and a command that checks an image.

``python -m guest.manifest DIRECTORY`` looks at everything, digests included, and says what is wrong.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from kuasar.backends.guest_image import (
    FORMAT,
    INITRD,
    KERNEL,
    NAME,
    ROOT_DISK,
    File,
    Image,
    ImageUnusable,
    describe,
    load,
)

__all__ = [
    "INITRD",
    "KERNEL",
    "NAME",
    "ROOT_DISK",
    "File",
    "Image",
    "ImageUnusable",
    "describe",
    "load",
    "main",
    "write",
]


def write(directory: str, image: Image) -> None:
    """Write ``image.json``, by rename."""
    path = f"{directory}/{NAME}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **asdict(image)}, file, indent=2, sort_keys=True)
        file.write("\n")
    os.replace(f"{path}.new", path)


def main() -> int:
    """Check the image that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python -m guest.manifest DIRECTORY", file=sys.stderr)
        return 2
    try:
        image = load(sys.argv[1], digests=True)
    except ImageUnusable as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"{image.digest} Linux {image.kernel_release}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
