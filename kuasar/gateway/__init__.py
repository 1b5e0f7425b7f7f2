"""The gateway: translates containerd's Sandbox and Task calls into messages on the bus, and owns nothing durable."""
