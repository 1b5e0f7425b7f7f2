"""The guest image: its build, its content, and real boots of it."""
