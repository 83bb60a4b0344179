"""Flower, behind a door of its own, and with pages about what inturn knows besides tasks. It asks like a client."""
