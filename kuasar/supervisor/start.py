"""``python -m kuasar.supervisor.start``: what the systemd unit runs. Becomes supervisord, set up by ``kuasar.toml``.

supervisord's own configuration is made anew at every start, as ``supervisord.conf`` in the state directory: so
``kuasar.toml`` is the only file that an operator changes, and a new version of the package brings its own. Exits with 2
for a configuration that cannot be used (restarting would not help), with 1 for anything else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kuasar.core.config import Config, ConfigError, load
from kuasar.core.errors import KuasarError
from kuasar.core.notify import notify
from kuasar.core.shipped import shipped
from kuasar.supervisor.render import prepare, render, write_private

EXIT_USAGE = 2


def supervisord_conf(config: Config) -> str:
    """Where the file is; supervisorctl needs it, too."""
    return f"{config.state_dir}/supervisord.conf"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; does not return where it succeeds."""
    parser = argparse.ArgumentParser(prog="kuasar-supervisord", description="become supervisord, set up by kuasar.toml")
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
        prepare(config)
        path = supervisord_conf(config)
        write_private(path, render(shipped("supervisord.conf"), config))
    except ConfigError as exc:
        return _fail(str(exc), EXIT_USAGE)
    except (KuasarError, OSError) as exc:
        return _fail(str(exc), 1)
    return _become([sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", path])


def _fail(why: str, code: int) -> int:
    """Say why, also to systemd, which shows it in ``systemctl status``."""
    print(f"kuasar-supervisord: {why}", file=sys.stderr)
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        notify(address, f"STATUS={'; '.join(why.splitlines())}")
    return code


def _become(argv: Sequence[str]) -> NoReturn:
    """systemd watches this very process."""
    os.execv(argv[0], list(argv))  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
