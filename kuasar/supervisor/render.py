"""Makes supervisord's configuration from ours, so that paths and limits have one home: ``kuasar.toml``.

``python -m kuasar.supervisor.render --config kuasar.toml --template etc/supervisord.conf --output FILE`` also makes the
directories that must exist before supervisord starts: the state directory (0700) and the log directories.
"""

from __future__ import annotations

import argparse
import os
import pwd
import string
import sys
from collections.abc import Sequence

from kuasar.core.config import DEFAULT_PATH, Config, ConfigError, load
from kuasar.core.errors import KuasarError, PermissionDenied


def values(config: Config) -> dict[str, str]:
    """What the template may name, as ``${name}``."""
    path = config.path or DEFAULT_PATH
    return {
        "python": sys.executable,
        "config": os.path.abspath(path),
        "include": f"{os.path.dirname(os.path.abspath(path))}/supervisord.d/*.conf",
        "socket": config.supervisor.socket,
        "state_dir": config.state_dir,
        "log_dir": config.log_dir,
        "log_max_bytes": str(config.supervisor.log_max_bytes),
        "log_backups": str(config.supervisor.log_backups),
        # at its own debug level supervisord copies all output of its children into its log
        "log_level": {"warning": "warn", "debug": "info"}.get(config.log_level, config.log_level),
        "user": pwd.getpwuid(os.geteuid()).pw_name,
    }


def render(template: str, config: Config) -> str:
    """The finished text. Raises ``KeyError`` or ``ValueError`` for a template that names what there is not."""
    # '%' starts an expansion in supervisord's files
    return string.Template(template).substitute(
        {name: text.replace("%", "%%") for name, text in values(config).items()}
    )


def prepare(config: Config) -> None:
    """Make the directories. Raises :class:`PermissionDenied` if others may enter the state directory."""
    for directory in (config.state_dir, os.path.dirname(config.supervisor.socket), config.sandboxes_dir):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    for directory in (config.log_dir, config.sandbox_log_dir):
        os.makedirs(directory, mode=0o750, exist_ok=True)
    mode = os.stat(config.state_dir).st_mode & 0o777
    if mode & 0o077:
        raise PermissionDenied(
            f"state_dir: {config.state_dir} has mode {mode:04o}, but only its owner may enter (0700)"
        )


def write_private(path: str, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="kuasar-render", description="make supervisord.conf from kuasar.toml")
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--template", required=True, help="supervisord.conf with ${...}")
    parser.add_argument("--output", required=True, help="file to write, mode 0600")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
        prepare(config)
        with open(options.template, encoding="utf-8") as file:
            text = render(file.read(), config)
        write_private(options.output, text)
    except (ConfigError, KuasarError, OSError) as exc:
        print(f"kuasar-render: {exc}", file=sys.stderr)
        return 1
    except (KeyError, ValueError) as exc:
        print(f"kuasar-render: {options.template}: unknown or malformed placeholder: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
