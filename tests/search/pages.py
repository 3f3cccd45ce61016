"""A server of the page by its real command, and a real browser to look at it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"moments: (http://\S+)")


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[str]:
    """`rushes app ...` on a free port until the end of the block; gives the address it prints."""
    command = [sys.executable, "-m", "rushes.cli", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said, found = [], None
        for line in process.stdout:  # ends when the process does
            said.append(line)
            if found := ADDRESS.search(line):
                break
        assert found, f"no address: {said}"
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def browsing(profile: Path) -> Iterator[Any]:
    """Headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1400,1000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()
