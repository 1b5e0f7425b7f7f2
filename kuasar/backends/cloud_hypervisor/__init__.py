"""The Cloud Hypervisor engine: what is sent to it, and how."""
