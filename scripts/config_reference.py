#!/usr/bin/env python3
"""Writes docs/configuration.md from kuasar/core/config.py: keys, types, defaults and the text below each field; a unit
test compares the two. `python -m scripts.config_reference` rewrites the page.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kuasar.core import config as source
from kuasar.core.config import DEFAULT_PATH, Config, Engine
from kuasar.core.engines import BACKEND_MODULES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
_BY_NAME = {"sandboxers": source.Sandboxer, "engines": Engine}
_HEAD = f"""# Configuration

<!-- Written by `python -m scripts.config_reference` from kuasar/core/config.py. -->

One TOML file, `{DEFAULT_PATH}`, or what `--config FILE` or, for kuasarctl, `KUASAR_CONFIG` names. Every key may
be left out, the file too; an unknown key, a wrong type or a value out of range is an error, and all errors are told at
once, each with its key (`kuasarctl doctor`). [etc/kuasar.toml](../etc/kuasar.toml) is the whole file with its defaults.

A change holds for processes that are started after it. No pod notices the restart of any of them:

| what has changed | restart |
|---|---|
| `[gateway]`, `[metrics]`, `[tracing]`, `[containerd]` | the gateway |
| `[sandboxers]`, `[engines]`, `log_*`, for new sandboxes | the gateway and the zygote, whose workers inherit them |
| the same of sandboxes that exist | their workers too: `supervisorctl restart sandbox:ID` |
| `[supervisor]`, directories | everything; directories and sockets only when there are no pods |

`log_level` alone can be changed in running processes: `kuasarctl log-level`.

A **sandboxer** is the name that containerd's configuration uses; it says which engine a pod of a RuntimeClass gets. An
**engine** is a backend with its settings; there may be several of one kind:

```toml
[sandboxers.kuasar-qemu-big]
engine = "qemu-big"
[engines.qemu-big]
kind = "qemu"
memory_mib = 1024
```

There is an engine of each kind without any configuration, named like it
({", ".join(f"`{kind}`" for kind in sorted(BACKEND_MODULES))}), and a sandboxer `kuasar-<kind>` for it; a file that has
any `[engines.*]` or `[sandboxers.*]` replaces all of these.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_table("Top level", Config), *_sections()]).rstrip("\n") + "\n"


def _sections() -> Iterator[str]:
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _table(f"`[{field.name}]`", hint)
        elif field.name in _BY_NAME:
            yield from _table(f"`[{field.name}.NAME]`", _BY_NAME[field.name])


def _table(title: str, kind: type[Any]) -> Iterator[str]:
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    yield f"## {title}"
    yield ""
    if kind is not Config:
        yield inspect.cleandoc(kind.__doc__ or "").partition(": ")[2].capitalize().replace("\n", " ").replace("``", "`")
        yield ""
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.name == "path" or dataclasses.is_dataclass(hint) or field.name in _BY_NAME:
            continue
        yield f"| `{field.name}` | {_type(hint)} | {_default(field)} | {texts.get(field.name, '')} |"
    yield ""


def _type(hint: Any) -> str:
    names = {str: "text", int: "number", float: "number", bool: "boolean"}
    return names.get(hint, "list of text")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "needed"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


def _texts(kind: type[Any]) -> dict[str, str]:
    """The string below each field."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            text = inspect.cleandoc(str(after.value.value))
            found[node.target.id] = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return found


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
