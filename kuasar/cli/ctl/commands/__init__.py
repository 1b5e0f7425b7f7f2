"""The subcommands of ``kuasarctl``."""
