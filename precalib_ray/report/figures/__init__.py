"""Figures, drawn without a display."""

import matplotlib

matplotlib.use("Agg")
