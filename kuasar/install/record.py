"""What an installation has done to a node: written before it is done, so that it can always be taken back.

One JSON file, 0600, because it holds containerd's configuration as it was. For each path: what
was there before, and the digests of everything that we ever put there; what is found later is one of the two, or an
operator's work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from kuasar.core.errors import InvalidArgument
from kuasar.install.files import Found, file

PATH = "/var/lib/kuasar/install.json"
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One path."""

    before: Found
    """Before the installation."""
    ours: tuple[str, ...] = ()
    """Digests of what we have put there, also in earlier versions."""
    offered: str = ""
    """Digest of what we wanted to be there the last time."""

    def with_ours(self, found: Found) -> Entry:
        """Also ``found`` is ours, and was wanted last."""
        ours = self.ours if found.digest in self.ours else (*self.ours, found.digest)
        return replace(self, ours=ours, offered=found.digest)


@dataclass(frozen=True)
class Target:
    """Which containerd."""

    config: str = "/etc/containerd/config.toml"
    program: str = "containerd"
    service: str = "containerd.service"


@dataclass(frozen=True)
class Record:
    """A whole installation."""

    version: str = ""
    """Of the package."""
    config: str = ""
    """Digest of the configuration that was in force: the service runs with it."""
    containerd: Target = Target()
    entries: dict[str, Entry] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    """That we made, outermost first; removed when they are empty."""
    data: tuple[str, ...] = ()
    """State, logs and caches: directories that did not exist before; removed with all that is in them."""
    states: tuple[str, ...] = ()
    """State directories that were ever configured: where sandboxes can be."""
    runtimes: tuple[str, ...] = ()
    """That containerd has from us."""

    def to_file(self) -> Found:
        """As it is written."""
        entries = {
            path: {"before": entry.before.to_json(), "ours": entry.ours, "offered": entry.offered}
            for path, entry in sorted(self.entries.items())
        }
        values = {
            "format": _FORMAT,
            "version": self.version,
            "config": self.config,
            "containerd": self.containerd.__dict__,
            "entries": entries,
            **{name: getattr(self, name) for name in ("directories", "data", "states", "runtimes")},
        }
        return file(json.dumps(values, indent=1).encode() + b"\n", 0o600)

    @classmethod
    def from_file(cls, found: Found, path: str) -> Record:
        """Total decoder. Raises InvalidArgument that names ``path``."""
        try:
            raw = json.loads(found.content)
            if raw["format"] != _FORMAT:
                raise InvalidArgument(f"{path}: format {raw['format']!r} is not known to this version")
            entries = {
                str(name): Entry(Found.from_json(each["before"]), _strings(each["ours"]), str(each["offered"]))
                for name, each in raw["entries"].items()
            }
            target = Target(**{name: str(raw["containerd"][name]) for name in ("config", "program", "service")})
            lists = {name: _strings(raw[name]) for name in ("directories", "data", "states", "runtimes")}
            return cls(str(raw["version"]), str(raw["config"]), target, entries, **lists)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidArgument(f"{path}: damaged: {exc!r}") from exc


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidArgument(f"not a list of strings: {value!r:.100}")
    return tuple(value)
