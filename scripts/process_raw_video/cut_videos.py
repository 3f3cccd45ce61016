"""See `python cut_videos.py --help`; the work is in rushes.video.prepare_cuts."""

import sys

from rushes.errors import RushesError
from rushes.log import setup_logging
from rushes.video.prepare_cuts import main

if __name__ == "__main__":
    setup_logging()
    try:
        sys.exit(main())
    except RushesError as error:
        sys.exit(f"cut_videos.py: {error}")
