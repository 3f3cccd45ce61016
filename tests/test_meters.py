"""What is seen of a run where a disk is full or the machine's peak is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rushes.distributed import SingleWorld
from rushes.log import MetricsWriter
from rushes.meters import METRICS, PEAK_VARIABLE, Meters
from tests.helpers import disk_of


@pytest.mark.fault
def test_lines_wait_until_the_disk_has_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(step=1)
        with disk_of(path.stat().st_size + 5):  # room for a part of the next line
            writer.write(step=2)
            writer.write(step=3)
        assert path.stat().st_size == len('{"step": 1}\n') + 5
        writer.write(step=4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert caplog.text.count("cannot be written now") == 1


@pytest.mark.fault
def test_a_full_disk_ends_the_board_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    meters = Meters(tmp_path, SingleWorld(), 0, 3, log_every=1)
    meters.step(1, {"loss": 1.0}, 4, 0.0)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    meters.step(2, {"loss": 1.0}, 4, 0.0)
    meters.step(3, {"loss": 1.0}, 4, 0.0)
    meters.close()
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3
    assert caplog.text.count("TensorBoard gets no further points") == 1


def test_utilisation_is_the_share_of_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PEAK_VARIABLE, "1e9")
    meters = Meters(tmp_path, SingleWorld(), 0, 1, log_every=1)
    meters.flops_per_sample = 1e6
    meters.step(1, {}, 8, 0.0)
    meters.close()
    line = json.loads((tmp_path / METRICS).read_text())
    assert line["mfu"] == pytest.approx(8e6 / line["seconds"] / 1e9)
