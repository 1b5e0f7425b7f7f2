"""Control groups of version 1, hybrid and version 2 under one roof: what the worker and the agent need of them.

A cgroup is named by its path below the roots of all hierarchies (``/kuasar/kuasar-x``), as in an OCI specification.
Who makes one owns it and destroys it. Nothing here keeps state but the list of mounted hierarchies, read once per
process. ``tree`` makes, fills, freezes, kills and removes; ``statistics`` reads; ``resources`` sets limits;
``oom`` tells of kills by the kernel.
"""

from kuasar.core.cgroup.hierarchies import Hierarchies, current, expand
from kuasar.core.cgroup.migration import enter_alone, prepare
from kuasar.core.cgroup.oom import OomWatch, oom_kills
from kuasar.core.cgroup.resources import apply
from kuasar.core.cgroup.statistics import stats
from kuasar.core.cgroup.tree import create, destroy, enter, exists, freeze, kill, mark, marked, procs, thaw

__all__ = [
    "Hierarchies",
    "OomWatch",
    "apply",
    "create",
    "current",
    "destroy",
    "enter",
    "enter_alone",
    "exists",
    "expand",
    "freeze",
    "kill",
    "mark",
    "marked",
    "oom_kills",
    "prepare",
    "procs",
    "stats",
    "thaw",
]
