"""What people look at: figures, the card of a version, and code to load it."""
