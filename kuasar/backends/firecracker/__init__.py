"""The Firecracker engine: microVMs with disks and nothing shared."""
