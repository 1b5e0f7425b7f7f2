"""``template``: the machines that were booted once and are kept to be cloned."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from kuasar.cli.ctl import words
from kuasar.cli.ctl.failures import Absent, Failed
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import json_option, pass_node
from kuasar.cli.ctl.output import data, table
from kuasar.cli.ctl.select import Named, select
from kuasar.core.spawn import MINIMAL_ENV

_WITH_TEMPLATES = ("qemu",)
_KEY = re.compile(r"[0-9a-f]{8,64}")
_ASIDE = ".bad"
_SHORT = 12


@click.group()
def template() -> None:
    """List, make and remove the templates that virtual machines are cloned from."""


@template.command("ls")
@json_option
@pass_node
def list_(node: Node, as_json: bool) -> None:
    """List the templates of this node."""
    found = list(_templates(node))
    if as_json:
        data(found)
        return
    rows = (
        (
            each["key"] if each["state"] == "ready" else f"{each['key'][:_SHORT]}",
            each["engine"],
            each["state"],
            words.age(each["created_at"]),
            words.size(each["memory_bytes"]),
            words.size(each["bytes"]),
            f"{each['boot_seconds']:.1f} s" if each["boot_seconds"] else "-",
        )
        for each in found
    )
    table(("KEY", "ENGINE", "STATE", "AGE", "MEMORY", "ON DISK", "BOOT"), rows)


@template.command()
@click.option("--engine", default="qemu", show_default=True, help="Name of the engine in the configuration.")
@pass_node
def build(node: Node, engine: str) -> None:
    """Make the template of an engine's machines, if there is none of its kind.

    It is made by itself when the first pod needs it; this makes it before. Takes as long as a boot, plus some seconds.
    """
    settings = node.config.engines.get(engine)
    if settings is None or (settings.kind or engine) not in _WITH_TEMPLATES:
        raise click.UsageError(f"engine {engine!r} is not configured, or has no templates")
    argv = [sys.executable, "-m", "kuasar.backends.qemu.maker", "--engine", engine]
    argv += ["--config", node.config.path] if node.config.path else []
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, env=dict(MINIMAL_ENV), check=False)
    except KeyboardInterrupt:
        raise click.Abort from None
    if done.returncode:
        raise Failed("no template was made; the reason is above")


@template.command()
@click.argument("key")
@pass_node
def rm(node: Node, key: str) -> None:
    """Remove the template KEY (the beginning of a key is enough). Machines that were cloned from it run on."""
    found = list(_templates(node))
    wanted = select(key, (Named(each["key"]) for each in found), "template")
    for each in sorted(found, key=lambda one: not str(one["path"]).endswith(_ASIDE)):
        if each["key"] == wanted:
            with _not_being_made(each["path"]):
                _remove(each["path"])
                click.echo(f"removed {each['path']}")


def _templates(node: Node) -> Iterator[dict[str, Any]]:
    for engine in sorted(node.config.engines):
        settings = node.config.engine(engine)
        if settings.kind not in _WITH_TEMPLATES:
            continue
        directory = f"{settings.cache_dir}/templates"
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            continue
        for name in names:
            if _KEY.fullmatch(name.removesuffix(_ASIDE)) and os.path.isdir(f"{directory}/{name}"):
                yield _described(engine, name, f"{directory}/{name}")


def _described(engine: str, name: str, path: str) -> dict[str, Any]:
    """A template, whole or not."""
    key, state = name.removesuffix(_ASIDE), "set aside" if name.endswith(_ASIDE) else "ready"
    try:
        with open(f"{path}/template.json", "rb") as file:
            values = json.load(file)
        memory, created = int(values["memory_bytes"]), int(values["created_at"])
        boot = float(values["boot_seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        memory, created, boot = 0, 0, 0.0
        state = "damaged" if state == "ready" else state
    return {
        "key": key,
        "engine": engine,
        "state": state,
        "path": path,
        "created_at": created,
        "memory_bytes": memory,
        "boot_seconds": boot,
        "bytes": _on_disk(path),
    }


def _on_disk(path: str) -> int:
    return sum(os.stat(f"{path}/{name}").st_blocks * 512 for name in os.listdir(path))


@contextmanager
def _not_being_made(path: str) -> Iterator[None]:
    """Raises :class:`Failed` while a maker is at work; keeps makers away while entered."""
    with open(f"{path.removesuffix(_ASIDE)}.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"template {os.path.basename(path)} is being made; try again") from None
        yield


def _remove(path: str) -> None:
    """At once for those who look for it; a machine that is being cloned has its files open."""
    doomed = f"{path.removesuffix(_ASIDE)}{_ASIDE}"
    try:
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)
        shutil.rmtree(doomed)
    except FileNotFoundError as exc:
        raise Absent(f"{path} is gone already") from exc
    except OSError as exc:
        raise Failed(f"{path} cannot be removed: {exc.strerror}") from exc
