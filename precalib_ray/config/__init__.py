"""Everything that a YAML may say, checked before Ray starts."""
