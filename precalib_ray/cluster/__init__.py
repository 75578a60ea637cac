"""Ray: sessions, trainers and what their workers run."""
