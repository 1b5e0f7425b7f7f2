"""The files that come with the package: ``etc`` of the checkout, which the wheel carries as ``kuasar/etc``."""

from __future__ import annotations

import os

DIRECTORY = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/etc"


def shipped(name: str) -> str:
    """The text of a file, named by its path below ``etc``."""
    with open(f"{DIRECTORY}/{name}", encoding="utf-8") as file:
        return file.read()
