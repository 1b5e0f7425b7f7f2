"""The real zygote with the tests' own registry of kinds."""

from __future__ import annotations

import dataclasses
import sys

from kuasar.core.config import load
from kuasar.supervisor import zygote
from tests.integration.supervisor import tiny

KINDS = {
    "worker": dataclasses.replace(zygote.WORKER, run=tiny.run),
    "agent": dataclasses.replace(zygote.AGENT, run=tiny.run_agent),
}

if __name__ == "__main__":
    zygote.run(load(sys.argv[sys.argv.index("--config") + 1]), KINDS, announce="--announce" in sys.argv)
