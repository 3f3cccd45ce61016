"""Files and frames: what a file holds, which bytes hold a video, any moment of it. Imports no torch."""
