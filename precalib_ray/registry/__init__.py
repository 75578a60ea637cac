"""MLflow: tracking a job, publishing what it made, and pulling it back."""
