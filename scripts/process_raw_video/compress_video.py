"""See `python compress_video.py --help`; the work is in rushes.video.prepare."""

import sys

from rushes.errors import RushesError
from rushes.log import setup_logging
from rushes.video.prepare import main

if __name__ == "__main__":
    setup_logging()
    try:
        sys.exit(main())
    except RushesError as error:
        sys.exit(f"compress_video.py: {error}")
