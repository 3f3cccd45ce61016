"""The demo's model finds, answers and chooses on videos that it has not seen, each way of use.

Through the API, the commands and the page in a browser. What the model reached on its whole test
split is in its results; here it must be far above chance on a few videos of that split.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes import VideoText
from rushes.cli import main
from tests.helpers import demo_folder, require
from tests.search.pages import browsing, serving

pytestmark = [pytest.mark.use, pytest.mark.slow, pytest.mark.needs_demo]
VIDEOS, ASKED = 16, 6
"""Test videos that are searched, and how many captions and questions go through commands."""


def rows(name: str) -> list[dict[str, Any]]:
    text = (demo_folder() / "corpus" / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first test videos, none of which was trained on."""
    require("demo")
    seen = {row["video"] for split in ("train", "val") for row in rows(split)}
    folder = tmp_path_factory.mktemp("unseen")
    for row in rows("test")[:VIDEOS]:
        assert row["video"] not in seen
        (path,) = (demo_folder() / "corpus" / "videos").glob(f"{row['video']}.*")
        (folder / path.name).hardlink_to(path)
    return folder


def file_of(videos: Path, name: str) -> Path:
    (path,) = videos.glob(f"{name}.*")
    return path


def captions() -> list[tuple[str, str]]:
    """(video, caption) of the test videos."""
    return [(row["video"], row["segments"][0]["text"]) for row in rows("test")[:VIDEOS]]


def questions(kind: str) -> list[tuple[str, str, str]]:
    """(video, question, answer) about the test videos, one a video."""
    names = {video for video, _ in captions()}
    found = [row for row in rows("test_qa") if row["video"] in names]
    asked = [row for row in found if row["tags"]["answer_type"] == kind]
    return [(row["video"], row["segments"][0]["text"], row["answer"]) for row in asked]


def test_through_the_api(videos: Path) -> None:
    model = VideoText.from_pretrained(demo_folder() / "retrieval", device="cpu")
    files = [file_of(videos, video) for video, _ in captions()]
    scores = model.similarity([text for _, text in captions()], files)
    ranks = [1 + int((row > row[i]).sum()) for i, row in enumerate(scores)]
    # By chance the mean rank among 16 is 8.5 with a standard error of 1.2.
    assert np.mean(ranks) < 8.5 - 4 * 1.2
    names = {video for video, _ in captions()}
    by_colour = [
        row
        for row in rows("test_mc")
        if row["video"] in names and row["tags"]["answer_type"] == "color"
    ]
    right = [
        model.choose(file_of(videos, row["video"]), row["options"])[0].text
        == row["options"][row["answer"]]
        for row in by_colour
    ]
    assert len(right) >= 4
    assert np.mean(right) >= 0.6  # chance is 0.2

    asking = VideoText.from_pretrained(demo_folder() / "qa", device="cpu")
    known = [
        asking.answer(file_of(videos, video), question)[0][0].text == answer
        for video, question, answer in questions("count")
    ]
    assert len(known) == VIDEOS
    assert np.mean(known) >= 0.6  # the commonest answer reaches 0.33


def test_through_the_commands(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval, index = str(demo_folder() / "retrieval"), str(tmp_path / "index")
    assert main(["index", str(videos), "--model", retrieval, "--out", index]) == 0
    assert f"{VIDEOS} videos" in capsys.readouterr().out
    found = 0
    for video, text in captions()[:ASKED]:
        assert main(["search", text, "--index", index, "--top", "3", "--json"]) == 0
        hits = [json.loads(line)["video"] for line in capsys.readouterr().out.splitlines()]
        found += video in hits
    assert found >= ASKED / 2  # chance is 3 of 16 where no video comes twice
    known = 0
    for video, question, answer in questions("count")[:ASKED]:
        path = str(file_of(videos, video))
        assert main(["answer", path, question, "--model", str(demo_folder() / "qa")]) == 0
        known += capsys.readouterr().out.splitlines()[0].split()[1] == answer
    assert known >= ASKED / 2
    row = next(row for row in rows("test_mc") if row["tags"]["answer_type"] == "color")
    command = ["answer", str(file_of(videos, row["video"])), "which?", "--model", retrieval]
    assert main([*command, "--options", *row["options"]]) == 0
    assert row["options"][row["answer"]] in capsys.readouterr().out.splitlines()[0]


@pytest.mark.needs_browser
def test_through_the_page(videos: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    # One folder with retrieval/ and qa/, as `rushes demo` leaves it: both models are found.
    arguments = ["app", str(demo_folder()), "--videos", str(videos)]
    with (
        serving([*arguments, "--index", str(tmp_path / "index")]) as address,
        browsing(tmp_path / "profile") as browser,
    ):
        wait = WebDriverWait(browser, 60)

        def all_of(css: str) -> list[Any]:
            return list(browser.find_elements(By.CSS_SELECTOR, css))

        browser.get(address)
        wait.until(lambda _: f"{VIDEOS} videos" in browser.find_element(By.ID, "state").text)
        found = 0
        for video, text in captions()[:ASKED]:
            box = browser.find_element(By.ID, "text")
            box.clear()
            for old in all_of(".moment"):
                browser.execute_script("arguments[0].remove()", old)
            box.send_keys(text, Keys.ENTER)
            wait.until(lambda _: all_of(".moment"))
            found += video in [name.text for name in all_of(".moment b")[:3]]
        assert found >= ASKED / 2
        all_of(".moment")[0].click()
        chosen = all_of(".moment b")[0].text
        question, answer = next((q, a) for v, q, a in questions("count") if v == chosen)
        browser.find_element(By.ID, "question").send_keys(question)
        browser.find_element(By.ID, "whole").click()
        browser.find_element(By.CSS_SELECTOR, "#ask button").click()
        wait.until(lambda _: len(all_of("#answers li")) == 5)
        assert answer in [shown.text for shown in all_of("#answers .answer")[:2]]
        shot = os.environ.get("RUSHES_SCREENSHOT", str(tmp_path / "page.png"))
        assert browser.save_screenshot(shot)
