"""Annotations, clip sampling, geometry, text and batches."""
