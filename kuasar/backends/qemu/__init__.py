"""The QEMU engine: the microVM that runs everywhere, with KVM where that works and without where it does not."""
