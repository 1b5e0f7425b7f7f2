"""From what an operator types to one sandbox: its id, a unique beginning of it, or its pod's name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kuasar.cli.ctl.failures import Absent, Ambiguous

_SHOWN = 5


@dataclass(frozen=True)
class Named:
    """A sandbox that can be chosen."""

    id: str
    pod: str = ""
    pod_namespace: str = ""


def select(wanted: str, candidates: Iterable[Named], what: str = "sandbox") -> str:
    """The id that ``wanted`` means: a whole id, else a pod's name (``name`` or ``namespace/name``), else the beginning
    of exactly one id. Raises :class:`Absent` and :class:`Ambiguous`, the latter with what it could be."""
    known = list({each.id: each for each in candidates}.values())
    if any(each.id == wanted for each in known):
        return wanted
    by_name = [each for each in known if each.pod and wanted in (each.pod, f"{each.pod_namespace}/{each.pod}")]
    found = by_name or [each for each in known if wanted and each.id.startswith(wanted)]
    if len(found) == 1:
        return found[0].id
    if not found:
        raise Absent(f"there is no {what} {wanted!r}")
    names = sorted(f"{each.id} ({each.pod})" if each.pod else each.id for each in found)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise Ambiguous(f"{wanted!r} fits {len(found)}: {', '.join(names[:_SHOWN])}{more}")
