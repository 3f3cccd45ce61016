"""Serve frames to trainers: `rushes serve-frames` as a script of its own."""

from rushes.video.service.command import run

if __name__ == "__main__":
    run()
