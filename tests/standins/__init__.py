"""Executables that stand in for engines which cannot run here."""
