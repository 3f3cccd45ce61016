"""The demo corpus: real video files of a made world whose ground truth is known.

Scenes are planned (`scene`), drawn (`draw`), sounded (`sound`), worded (`text`) and encoded
(`files`); `corpus` puts them together and `films` strings scenes into long videos.
"""

from rushes.datasets.footage.corpus import main, render_corpus

__all__ = ["main", "render_corpus"]
