"""See `python decode_frames.py --help`; the work is in rushes.video.prepare_frames."""

import sys

from rushes.errors import RushesError
from rushes.log import setup_logging
from rushes.video.prepare_frames import main

if __name__ == "__main__":
    setup_logging()
    try:
        sys.exit(main())
    except RushesError as error:
        sys.exit(f"decode_frames.py: {error}")
