"""Noise, labels, stream, models, probes, engine, checkpoint: PyTorch without Ray or MLflow."""
