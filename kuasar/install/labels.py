"""A node's labels: which of our runtimes can be used there, in the words that the RuntimeClasses select nodes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kuasar.core.errors import InvalidArgument

PREFIX = "kuasar.io/"
YES = "true"


def labels_of(doctor: Any, engines: Any) -> dict[str, str]:
    """From what ``kuasarctl doctor --json`` and ``kuasarctl engines --json`` say.

    None for a node on which a check fails, because no sandbox can run there. Raises InvalidArgument for other data.
    """
    try:
        if int(doctor["fail"]):
            return {}
        usable = [each for each in engines["engines"] if each["usable"] is True]
        names = [str(name) for each in usable for name in each["sandboxers"]]
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidArgument(f"not what kuasarctl's doctor and engines say: {exc!r}") from exc
    return {label_of(name): YES for name in sorted(names)}


def label_of(runtime: str) -> str:
    """``kuasar.io/qemu`` for ``kuasar-qemu``."""
    return f"{PREFIX}{runtime.removeprefix('kuasar-')}"


def changes(there: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What makes ``there`` say what is ``wanted``; None removes. Labels that are not ours are never touched."""
    gone = {name: None for name in sorted(there) if name.startswith(PREFIX) and name not in wanted}
    return {**gone, **{name: value for name, value in wanted.items() if there.get(name) != value}}


def in_words(difference: Mapping[str, str | None]) -> Sequence[str]:
    """For people, as ``kubectl label`` spells it."""
    return [f"{name}-" if value is None else f"{name}={value}" for name, value in difference.items()]
