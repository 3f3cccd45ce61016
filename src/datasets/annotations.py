"""Annotations of any known format as records: the one module that the others import."""

from __future__ import annotations

from rushes.datasets.annotation_commands import main
from rushes.datasets.formats.registry import READERS, read_records, sniff_format
from rushes.datasets.record import Record, Segment, record_from_json, record_to_json
from rushes.datasets.record_store import RecordStore, open_records, text_segments

__all__ = [
    "READERS",
    "Record",
    "RecordStore",
    "Segment",
    "main",
    "open_records",
    "read_records",
    "record_from_json",
    "record_to_json",
    "sniff_format",
    "text_segments",
]
