"""The first process of the guest: prepares the machine, then becomes the agent. Nothing of it runs on the host."""
