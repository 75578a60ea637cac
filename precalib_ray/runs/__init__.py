"""The lifecycle that all jobs share: submitted twice, one result."""
