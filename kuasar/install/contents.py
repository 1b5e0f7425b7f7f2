"""Everything that an installation puts onto a node, and where."""

from __future__ import annotations

import os
import string
import sys
import tomllib

from kuasar.core.config import DEFAULT_PATH, Config, parse
from kuasar.core.errors import InvalidArgument, NotFound
from kuasar.core.shipped import shipped
from kuasar.install.files import ABSENT, FILE, Found, file, link, look
from kuasar.install.plan import below
from kuasar.install.record import Record
from kuasar.install.services import KUASAR

CONFIG = DEFAULT_PATH
DROP_IN = "/etc/containerd/conf.d/kuasar.toml"
UNIT = f"/etc/systemd/system/{KUASAR}"
COMMANDS = "/usr/local/bin"
"""On the PATH of services, and of people."""
SHIM = "containerd-shim-kuasar-v2"
_LINKED = (SHIM, "kuasarctl")


def effective_config(root: str, record: Record, brought: bytes | None = None) -> tuple[Found, Config]:
    """The file that is offered (``brought``, else the shipped one), and the configuration that will be in force: an
    operator's, if there is one, else that. Raises ConfigError."""
    ours = file(shipped("kuasar.toml").encode() if brought is None else brought)
    found = look(below(root, CONFIG))
    entry = record.entries.get(CONFIG)
    is_kept = found.kind == FILE and (entry is None or found.digest not in entry.ours)
    try:
        raw = tomllib.loads((found if is_kept else ours).content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"{CONFIG}: not valid TOML: {exc}") from exc
    return ours, parse(raw, CONFIG)


def contents(config: Found, drop_in: str, containerd_service: str) -> dict[str, Found]:
    """What shall be where, in the order in which it is put there; without containerd's own configuration.

    Raises NotFound if this is not an installed package.
    """
    unit = string.Template(shipped(f"systemd/{KUASAR}")).substitute(python=_python(), config=CONFIG)
    unit = unit.replace("containerd.service", containerd_service)
    found = {CONFIG: config, UNIT: file(unit.encode()), DROP_IN: file(drop_in.encode())}
    for target in ("multi-user.target", containerd_service):
        found[f"{os.path.dirname(UNIT)}/{target}.wants/{KUASAR}"] = link(UNIT)
    for name in _LINKED:
        program = _program(name)
        if program != f"{COMMANDS}/{name}":
            found[f"{COMMANDS}/{name}"] = link(program)
    return found


def _python() -> str:
    """The one that runs us, by a name that does not depend on how it was called: else the unit would change with it."""
    path = f"{os.path.dirname(os.path.abspath(sys.executable))}/python3"
    return path if look(path).kind != ABSENT else sys.executable


def _program(name: str) -> str:
    """Beside the Python that runs us, where pip has put it."""
    path = f"{os.path.dirname(os.path.abspath(sys.executable))}/{name}"
    if look(path).kind == ABSENT:
        raise NotFound(f"{path}: is not there: install the package first (pip install kuasar)")
    return path
