"""``kuasarctl``: what an operator asks and does on one node."""
