"""The demo corpus: real video files of a made world whose ground truth is known.

Scenes are planned (`scene`), drawn (`draw`), sounded (`sound`), worded (`text`) and encoded
(`files`); `corpus` puts them together and `films` strings scenes into long videos.
"""

from rushes.datasets.footage.corpus import main, render_corpus

__all__ = ["PREPARE", "STORE", "main", "render_corpus"]

PREPARE = (
    *("--fps", "6", "--height", "192", "--gop", "6", "--crf", "20"),
    *("--preset", "veryfast", "--allow-bad"),
)
"""How the demo and the ablation compress their corpus: options of `rushes prepare`."""
STORE = ("--grid", "2", "--small", "0.56", "--no-audio", "--fps", "6")
"""How they pack it after that, options of `rushes store`: three full-size frames a second, and the
others large enough for the low-resolution input even of a portrait video."""
