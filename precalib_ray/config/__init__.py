"""The configs of all jobs, validated before Ray starts."""
