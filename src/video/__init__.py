"""Files and frames: what a file holds, which bytes hold a video, any moment. Imports no torch."""
