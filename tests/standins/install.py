"""A stand-in as a program: a script that anybody can read and run, as an engine's ``binary`` must be.

Programs of sandboxes start with no environment and as users who cannot look into a checkout, so the script has the
stand-in's settings in it, and a copy of its sources beside it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).parent
_SOURCES = ("__init__.py", "guest/__init__.py", "guest/client.py")


def install(name: str, directory: Path, program: str = "", settings: Mapping[str, str] | None = None) -> str:
    """Make the stand-in ``tests/standins/<name>.py`` the program ``<directory>/<program>`` (by default called as its
    VMM usually is); gives its path. ``settings`` become its environment. ``directory`` is made, for all to read; it is
    up to the caller that the way there is open, too."""
    library = directory / "lib"
    for source in (*_SOURCES, f"{name}.py"):
        target = library / "tests" / "standins" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_HERE / source, target)
    (library / "tests" / "__init__.py").touch()
    for parent, folders, files in os.walk(directory):
        for each in ("", *folders):
            os.chmod(f"{parent}/{each}", 0o755)
        for each in files:
            os.chmod(f"{parent}/{each}", 0o644)
    path = directory / (program or name.replace("_", "-"))
    exports = [f"export {key}={shlex.quote(value)}" for key, value in (settings or {}).items()]
    code = (
        f"import sys; sys.path.insert(0, {str(library)!r}); from tests.standins.{name} import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    python = os.path.realpath(sys.executable)
    path.write_text(
        "\n".join(["#!/bin/sh", *exports, f'exec {shlex.quote(python)} -E -s -B -c {shlex.quote(code)} "$@"', ""])
    )
    path.chmod(0o755)
    return str(path)
