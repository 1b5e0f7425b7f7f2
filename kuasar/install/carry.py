"""``python -m kuasar.install.carry``: what a privileged pod does to bring kuasar onto the node that it runs on.

The pod's image has the package in an environment of its own, ``/opt/kuasar/<version>``. That directory is copied to the
same place of the host, beside other versions, whose processes may still run; then ``kuasarctl install`` of the copy
does the rest, in the host's namespaces. Once it has succeeded other versions are removed. Harmless to repeat.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from kuasar import __version__
from kuasar.core.errors import BackendFailed, KuasarError
from kuasar.core.programs import run_program
from kuasar.install.files import make_parents

HOME = "/opt/kuasar"
ENTER = "nsenter --target 1 --mount --uts --ipc --net --pid --"
_SECONDS = 600.0


def carry(source: str, host: str) -> str:
    """Copy the environment ``source`` to the host whose root is ``host``; gives its path there.

    It takes its place under its name only when it is whole. Raises BackendFailed.
    """
    target = f"{HOME}/{__version__}"
    place = f"{host.rstrip('/')}{target}"
    part = f"{place}.part"
    try:
        if not os.path.isdir(place):
            make_parents(place)
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source, part, symlinks=True)
            os.rename(part, place)
    except (OSError, shutil.Error) as exc:
        raise BackendFailed(f"{source}: cannot be copied to {place}: {exc}") from exc
    return target


def carry_config(source: str, host: str) -> str:
    """Copy a configuration beside the environment; gives its path on the host. Raises BackendFailed."""
    target = f"{HOME}/{__version__}/offered.toml"
    try:
        shutil.copyfile(source, f"{host.rstrip('/')}{target}")
    except OSError as exc:
        raise BackendFailed(f"{source}: cannot be copied to the host: {exc}") from exc
    return target


def remove_others(host: str) -> list[str]:
    """Versions that are not this one."""
    home = f"{host.rstrip('/')}{HOME}"
    others = [name for name in sorted(os.listdir(home)) if name != __version__]
    for name in others:
        shutil.rmtree(f"{home}/{name}", ignore_errors=True)
    return others


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 installed, 1 not, and the reason is on standard error."""
    parser = argparse.ArgumentParser(prog="python -m kuasar.install.carry", description="Install kuasar onto a host.")
    parser.add_argument("--host", default="/host", help="where the host's root directory is mounted")
    parser.add_argument("--source", default=sys.prefix, help="the environment to copy (default: the one we run in)")
    parser.add_argument("--config", metavar="FILE", help="what the host gets as kuasar.toml")
    parser.add_argument("--enter", default=ENTER, help=f"what runs a command on the host (default: {ENTER})")
    parser.add_argument("options", nargs="*", help="of kuasarctl install, after --")
    options = parser.parse_args(argv)
    enter = shlex.split(options.enter)
    try:
        home = carry(options.source, options.host)
        works = run_program([*enter, f"{home}/bin/python", "-c", "import kuasar.cli.ctl.main"], _SECONDS)
        if works.code:
            raise BackendFailed(f"the host has no Python that runs {home}: {works.err.strip()[-500:]}")
        more = list(options.options)
        if options.config:
            more += ["--kuasar-config", carry_config(options.config, options.host)]
        done = subprocess.run([*enter, f"{home}/bin/kuasarctl", "install", *more], stdin=subprocess.DEVNULL)
        if done.returncode:
            return 1
        for name in remove_others(options.host):
            print(f"removed version {name}")
    except (KuasarError, OSError) as exc:
        print(f"kuasar-carry: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
