"""A worker whose machine is said not to share the host's files, so that it relays the standard streams itself."""

import sys

from kuasar.backends.runc import Engine
from kuasar.workers.main import main

if __name__ == "__main__":
    Engine.shares_host_files = False
    sys.exit(main())
