"""What drivers share whose containers are processes of a kernel of the pod's own (gVisor's, Quark's)."""
