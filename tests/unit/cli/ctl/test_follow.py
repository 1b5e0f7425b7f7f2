"""``logs -f``: what is written while somebody reads, also after the file was rotated or cut."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.interrupts import INTERRUPTIBLE
from tests.unit.cli.ctl.node_files import Files


def test_what_is_appended_is_shown_at_once_and_rotation_is_followed(files: Files) -> None:
    files.sandbox("abc", "web")
    path = files.root / "l" / "sandboxes" / "abc.log"
    path.write_text("old\nlast\n")
    argv = [
        *INTERRUPTIBLE,
        sys.executable,
        "-m",
        "kuasar.cli.ctl.main",
        "--config",
        str(files.config),
        "logs",
        "web",
        "-f",
        "-n",
        "1",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "last\n"
            with path.open("a") as file:
                file.write("half a ")
                file.flush()
                file.write("line\n")
            assert process.stdout.readline() == "half a line\n"
            path.rename(f"{path}.1")
            path.write_text("after rotation\n")
            assert process.stdout.readline() == "after rotation\n"
            path.write_text("cut\n")
            assert process.stdout.readline() == "cut\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
