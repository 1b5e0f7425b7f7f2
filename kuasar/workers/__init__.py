"""The worker: one process per sandbox, owner of its machine (docs/architecture.md)."""
