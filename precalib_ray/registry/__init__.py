"""MLflow: tracking of a run, publishing of a checkpoint, and pulling it back."""
