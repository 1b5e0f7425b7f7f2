"""What the gVisor driver is made of: the pod's kernel (runsc's "sentry"), its first program and figures."""
