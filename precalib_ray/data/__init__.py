"""Labeled images: data sets in Parquet, data that needs no download, converters, transforms."""
