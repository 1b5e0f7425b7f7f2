"""containerd's opinion of a configuration, asked before anything is written: ``containerd config dump``.

The exit code says little: a missing import, an unknown key and settings that were dropped all end with 0. So what comes
out is compared with what came out before: our runtimes and proxy plugins must have been added, and nothing else may
have changed.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
import tomllib
from dataclasses import dataclass
from typing import Any

from kuasar.core.config import Config
from kuasar.core.errors import BackendFailed, InvalidArgument, KuasarError
from kuasar.core.programs import run_program
from kuasar.install import drop_in, imports

NEEDED = (2, 1)
_SECONDS = 60.0
_SHOWN = 8


@dataclass(frozen=True)
class Edit:
    """What containerd's configuration becomes."""

    text: str
    """Of the main file."""
    drop_in: str
    """Of ours."""


def require_version(program: str) -> None:
    """Raises BackendFailed for a containerd that lacks the Sandbox API, or none."""
    done = run_program([program, "--version"], _SECONDS)
    match = re.search(r"\bv?(\d+)\.(\d+)\.\S*", done.out)
    if done.code or match is None:
        raise BackendFailed(f"{program} --version: not understood: {(done.out or done.err).strip()[:200]!r}")
    if (int(match[1]), int(match[2])) < NEEDED:
        wanted = ".".join(map(str, NEEDED))
        raise BackendFailed(f"{program} is containerd {match[0]}; {wanted} or newer is needed for the Sandbox API")


def make_edit(program: str, text: str, config: Config, main: str, ours: str, root: str) -> Edit:
    """Add the import of ``ours`` to ``text``, the content of ``main``, and prove the result with containerd.

    ``main`` and ``ours`` are paths as the node sees them, below ``root``. Raises InvalidArgument or BackendFailed with
    what is wrong; nothing was written then.
    """
    base = imports.remove_import(text, ours)
    edited = base if _covers(imports.imports_of(base), ours, main) else imports.add_import(base, ours)
    if base != text and edited != base:
        edited = text  # it was there, and stays as it is
    before = _dump(program, base, "", ours, main, root)
    taken = sorted(set(_runtimes(before)) & set(config.sandboxers))
    if taken:
        raise InvalidArgument(f"{main} has runtimes of these names itself: {', '.join(taken)}; take them out first")
    problems: list[str] = []
    for version in _versions(text):
        ours_text = drop_in.render(config, version)
        try:
            _require_only_ours(before, _dump(program, edited, ours_text, ours, main, root), config)
        except KuasarError as exc:
            problems.append(exc.message)
            continue
        return Edit(edited, ours_text)
    hint = "; `containerd config migrate` writes it in the newest format" if _versions(text) != (3,) else ""
    raise BackendFailed(f"{main} cannot take our drop-in: {problems[0]}{hint}")


def check(program: str, text: str, ours_text: str, config: Config, main: str, ours: str, root: str) -> None:
    """Prove a pair of texts that were not made here (a drop-in that an operator has edited). Raises BackendFailed."""
    base = imports.remove_import(text, ours)
    before = _dump(program, base, "", ours, main, root)
    _require_only_ours(before, _dump(program, text, ours_text, ours, main, root), config)


def _versions(text: str) -> tuple[int, ...]:
    """Of the drop-in, those that may fit, the likeliest first."""
    declared = tomllib.loads(text).get("version")
    return (declared,) if declared in drop_in.VERSIONS else drop_in.VERSIONS


def _covers(patterns: list[str], path: str, main: str) -> bool:
    """Whether these imports bring in ``path`` already."""
    directory = os.path.dirname(main)
    for pattern in patterns:
        whole = os.path.normpath(os.path.join(directory, pattern))
        if os.path.dirname(whole) == os.path.dirname(path) and _matches(os.path.basename(whole), path):
            return True
    return False


def _matches(pattern: str, path: str) -> bool:
    import fnmatch

    return fnmatch.fnmatchcase(os.path.basename(path), pattern)


def _dump(program: str, text: str, ours_text: str, ours: str, main: str, root: str) -> dict[str, Any]:
    """What containerd understands, with the files' future content, from copies elsewhere."""
    with tempfile.TemporaryDirectory(prefix="kuasar-install-") as directory:
        ours_copy = f"{directory}/kuasar.toml"
        paths: list[str] = []
        for pattern in imports.imports_of(text):
            whole = os.path.normpath(os.path.join(os.path.dirname(main), pattern))
            real = f"{root.rstrip('/')}{whole}"
            paths += [each for each in sorted(glob.glob(real)) if each != f"{root.rstrip('/')}{ours}"]
            if ours_text and _covers([pattern], ours, main):
                paths.append(ours_copy)
        copy = f"{directory}/config.toml"
        for path, content in ((ours_copy, ours_text), (copy, imports.replace_imports(text, paths))):
            with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(content)
        done = run_program([program, "--config", copy, "config", "dump"], _SECONDS)
    if done.code:
        raise BackendFailed(f"containerd refuses {main}: {done.err.strip().replace(directory, '')[-500:]}")
    try:
        return tomllib.loads(done.out)
    except tomllib.TOMLDecodeError as exc:
        raise BackendFailed(f"{program} config dump: its output is no TOML: {exc}") from exc


def _runtimes(dump: dict[str, Any]) -> dict[str, Any]:
    plugin = dump.get("plugins", {}).get("io.containerd.cri.v1.runtime", {})
    found: dict[str, Any] = plugin.get("containerd", {}).get("runtimes", {})
    return found


def _require_only_ours(before: dict[str, Any], after: dict[str, Any], config: Config) -> None:
    """Raises BackendFailed unless ``after`` is ``before`` with our runtimes and proxy plugins."""
    runtimes, proxies = _runtimes(after), after.get("proxy_plugins", {})
    for name in config.sandboxers:
        if runtimes.get(name, {}).get("sandboxer") != name:
            raise BackendFailed(f"containerd would not have the runtime {name}")
        if proxies.get(name, {}).get("address") != config.gateway.socket:
            raise BackendFailed(f"containerd would not have the proxy plugin {name} at {config.gateway.socket}")
        del runtimes[name], proxies[name]
    left = {**after, "imports": before.get("imports", [])}
    if not proxies and "proxy_plugins" not in before:
        left.pop("proxy_plugins", None)
    differences = list(_differences(before, left, ""))
    if differences:
        shown = "; ".join(differences[:_SHOWN]) + (" …" if len(differences) > _SHOWN else "")
        raise BackendFailed(f"it would change other settings: {shown}")


def _differences(before: Any, after: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[str] = []
        for key in sorted({*before, *after}):
            found += _differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if before == after else [f"{path}: {before!r} would be {after!r}"]
