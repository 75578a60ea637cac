"""Figures, the card of a version, and code to load it."""
