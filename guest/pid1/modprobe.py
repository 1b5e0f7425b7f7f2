"""What the kernel starts when it needs a module: ``/sbin/modprobe -q -- NAME``, as on any machine.

A process of its own for each request, by a script of two lines (``recipe.FILES``). Knows only the modules of the image.
"""

from __future__ import annotations

import sys

from guest.pid1.modules import Table


def main() -> int:
    """Load what is asked for; 1 when the image has no such module or the kernel refuses it."""
    table = Table()
    for alias in sys.argv[1:]:
        if alias.startswith("-"):
            continue
        name = table.find(alias)
        if name is None:
            return 1
        try:
            table.load(name)
        except OSError:
            return 1
    return 0
