"""From an engine's kind to its backend class, imported on first use."""

from __future__ import annotations

import importlib

from kuasar.backends.base import Backend
from kuasar.core.engines import BACKEND_MODULES
from kuasar.core.errors import NotFound


def require_backend(kind: str) -> type[Backend]:
    """The backend class of ``kind``: the one class named ``Engine`` of its module. Raises NotFound."""
    module_name = BACKEND_MODULES.get(kind)
    if module_name is None:
        raise NotFound(f"no engine of kind {kind!r} (there are: {', '.join(sorted(BACKEND_MODULES))})")
    backend: type[Backend] = importlib.import_module(module_name).Engine
    return backend
