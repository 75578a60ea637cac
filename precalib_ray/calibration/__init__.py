"""Calibration metrics and out-of-distribution scores."""
