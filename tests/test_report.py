"""results.json and the page: every figure in it, nothing outside it, frames of the right videos."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rushes.errors import StorageError
from rushes.report import (
    Page,
    jpeg_address,
    read_results,
    strips_of,
    write_report,
    write_results,
)
from rushes.report_charts import Line, curve_chart, number, smoothed, ticks
from rushes.search.library import open_folder
from tests.tiny_runs import make_corpus

RESULTS = {
    "retrieval": {
        "t2v_r1": 0.415,
        "t2v_r5": 0.74,
        "t2v_r10": 0.86,
        "t2v_r50": 0.99,
        "t2v_median_rank": 2.0,
        "t2v_mean_rank": 5.25,
        "v2t_r1": 0.39,
        "v2t_median_rank": 2.0,
        "v2t_mean_rank": 5.5,
        "num_videos": 200,
        "coverage": 1.0,
        "interval_95": {"t2v_r1": [0.345, 0.48]},
    },
    "qa": {
        "accuracy": 0.71,
        "majority": 0.29,
        "by_kind": {"color": 0.93, "motion <b>": 0.62},
        "majority_by_kind": {"color": 0.2, "motion <b>": 0.18},
        "interval_95": {"accuracy": [0.68, 0.74]},
    },
    "mc": {"accuracy": 0.66, "chance": 0.2},
}


class Reader(HTMLParser):
    """Checks that tags close in order and collects what the page points to."""

    VOID = frozenset({"meta", "img", "br", "input", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    corpus = make_corpus(folder / "corpus", test=6)
    run = folder / "retrieval"
    run.mkdir()
    generator = np.random.default_rng(0)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 401):
            loss = 3.8 * math.exp(-step / 120) + 0.4 + 0.15 * float(generator.standard_normal())
            line = {"kind": "train", "step": step, "loss": loss, "contrastive_loss": loss}
            file.write(json.dumps(line) + "\n")
            if step % 50 == 0:
                score = 0.45 * (1 - math.exp(-step / 150))
                line = {"kind": "validation", "step": step, "retrieval.t2v_r1": score}
                file.write(json.dumps({**line, "retrieval.v2t_r1": 0.9 * score}) + "\n")
        file.write('{"kind": "train", "st')  # a killed run
    rows = []
    for index, row in enumerate((corpus / "test.jsonl").read_text().splitlines()):
        record = json.loads(row)
        others = [f"test_0000{(index + shift) % 6}" for shift in (2, 0, 1, 3, 4)]
        top = [
            {"video": name, "score": 0.8 - 0.1 * place, "right": name == record["video"]}
            for place, name in enumerate(others)
        ]
        text = record["segments"][0]["text"]
        rows.append({"id": record["id"], "text": text, "rank": 2.0, "top": top})
    predictions = run / "test.jsonl"
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, reader = open_folder(corpus / "videos")
    page = Page(
        title="rushes demo",
        lead="From raw videos to a model that retrieves, answers and chooses.",
        results=RESULTS,
        runs={"retrieval": run, "absent": folder / "absent"},
        retrieval=predictions,
        strips=strips_of(reader),
        bad_videos=corpus / "bad.jsonl",
        facts={"time": "14:12", "seed": "0"},
    )
    write_report(folder / "report.html", page)
    reader.close()
    return folder / "report.html"


def test_the_page_is_whole_and_needs_nothing_else(written: Path) -> None:
    reader = Reader()
    reader.feed(written.read_text())
    assert reader.open == []
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses)
    assert len(reader.addresses) == 6 * 5 * 4
    for said in ("0.415", "chance 0.005", "0.345 to 0.480", "0.710", "majority 0.290", "0.660"):
        assert said in reader.text
    assert "motion <b>" in reader.text  # escaped, not markup
    assert "median rank 2, mean rank 5.2" in reader.text
    assert "http" not in written.read_text().replace("http-equiv", "")
    assert written.stat().st_size < 3_000_000


def test_frames_are_those_of_the_video(written: Path) -> None:
    _, reader = open_folder(written.parent / "corpus" / "videos")
    pictures = strips_of(reader)("test_00002", None, None)
    assert len(pictures) == 4
    assert pictures[0].shape == (90, 150, 3)
    assert len({picture.tobytes() for picture in pictures}) == 4
    first = re.findall(r"data:image/jpeg;base64,([^\"]+)", written.read_text())[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))), np.float64)
    assert np.abs(shown - pictures[0]).mean() < 6  # JPEG
    assert strips_of(reader)("absent", None, None) == ()
    reader.close()
    assert jpeg_address(pictures[0]).startswith("data:image/jpeg;base64,/9j/")


def test_right_videos_are_marked(written: Path) -> None:
    text = written.read_text()
    assert text.count('class="hit right"') == 6
    assert text.count("<b>right</b>") == 6
    assert "Bad videos" in text
    assert "Learning curves" in text
    assert text.count("<svg") == 2


def test_results_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, {"a": {"b": 0.1 + 0.2, "c": math.nan}, "d": [1, math.inf]})
    assert read_results(path) == {"a": {"b": 0.1 + 0.2, "c": None}, "d": [1, None]}
    path.write_text("[1]")
    with pytest.raises(StorageError, match="expected a JSON object"):
        read_results(path)


def test_an_empty_report_is_still_a_page(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", Page("nothing yet", {}))
    reader = Reader()
    reader.feed((tmp_path / "r.html").read_text())
    assert reader.open == []
    assert "nothing yet" in reader.text


def test_axes_are_round() -> None:
    assert ticks(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(3.0, 3.0, 4) == [3.0]
    low_high = ticks(0.37, 4.2, 4)
    assert low_high[0] <= 0.37
    assert low_high[-1] >= 4.2
    assert [number(v) for v in (0.0, 0.25, 12000, 3e-5)] == ["0", "0.25", "12k", "3e-05"]
    points = [(float(i), math.nan if i == 3 else 1.0) for i in range(1000)]
    kept = smoothed(points, 5)
    assert len(kept) <= 301
    assert kept[-1] == (999.0, 1.0)
    assert curve_chart("empty", [Line("x", ())]) == ""


@pytest.mark.slow
@pytest.mark.needs_browser
def test_a_browser_draws_it(written: Path, tmp_path: Path) -> None:
    from tests.helpers import launch

    out = Path(os.environ.get("RUSHES_SCREENSHOT", str(tmp_path / "report.png")))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"]
    command = [
        "chromium",
        *flags,
        "--window-size=1200,2600",
        f"--screenshot={out}",
        f"file://{written}",
    ]
    launch(command, timeout=60)
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] == 1200
    assert (
        len(np.unique(picture.reshape(-1, 3)[::97], axis=0)) > 500
    )  # strips and curves, not blank
