"""What a newcomer does: a fresh copy of the project, and nothing but its README."""
