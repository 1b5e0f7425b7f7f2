"""``python -m scripts.template``: makes the template of virtual machines that all stacks of this checkout use.

Nothing is done when it is there. Exit code of ``kuasar.backends.qemu.maker``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from kuasar.core.spawn import MINIMAL_ENV
from scripts.layout import CHECKOUT, default_settings


def main() -> int:
    """The command."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as config:
        config.write(f'log_level = "warning"\n{default_settings()}')
        config.flush()
        argv = [sys.executable, "-m", "kuasar.backends.qemu.maker", "--config", config.name]
        return subprocess.run(argv, cwd=CHECKOUT, env=dict(MINIMAL_ENV), stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
