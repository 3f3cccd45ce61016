"""Embeddings on disk: one format for export, index, offline scoring, feature tracks and caches.

A file (safetensors or h5) holds, for each modality and level, `{modality}_{level}` (values, rows of
all samples one after the other, `S D`), `{level}_num` (rows of each sample, int64 `B`), `key` (the
samples' ids) and `times` (start and end of each row in seconds, float64 `S 2`).
"""

from __future__ import annotations
