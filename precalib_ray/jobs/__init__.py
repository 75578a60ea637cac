"""The jobs: one verb, one file; what each checks, does, logs and shows."""
