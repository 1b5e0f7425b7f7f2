"""What the agent does only as the first process of a virtual machine (docs/agent-protocol.md, "In a guest")."""
