"""A run's folder and its checkpoints, on local or remote file systems."""
