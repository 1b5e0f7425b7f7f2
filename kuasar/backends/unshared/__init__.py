"""Machines that share no directory with their host: what they get is packed into disks or copied into their memory."""
