"""Commands for people and for containerd: the shim entry point, the CRI client, the image builder."""
