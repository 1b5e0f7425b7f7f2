"""Where the program ``kuasarctl`` begins: what makes a short life shorter comes before everything else is loaded."""

from __future__ import annotations

import gc

_THRESHOLD = 50_000


def run() -> None:
    """The command. Loading it makes 100,000 objects, none of them rubbish, that need not be looked through 100 times:
    saves a tenth of ``kuasarctl ps``."""
    gc.set_threshold(_THRESHOLD)
    from kuasar.cli.ctl.main import main

    main(prog_name="kuasarctl")


if __name__ == "__main__":
    run()
