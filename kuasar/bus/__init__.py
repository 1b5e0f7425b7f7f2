"""The message bus between gateway and workers; ``docs/bus.md`` is its specification."""
