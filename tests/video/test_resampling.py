"""Sound at another rate keeps its phase, at any pair of rates and in bounded time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from rushes.errors import DecodeTimeout
from rushes.video.resampling import resample


@pytest.mark.parametrize(
    "rate", [11_027, 8000, 16000, 16001, 22050, 44099, 44100, 44101, 48000, 96000]
)
def test_resampling_keeps_the_phase(rate: int) -> None:
    native, offset = 44100, 100.37
    t = np.arange(44100) / native
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    got = resample(tone, native, offset, rate, rate // 2)
    expected = np.sin(2 * np.pi * 440 * (offset / native + np.arange(rate // 2) / rate))
    assert np.abs(got - expected).max() < 2e-3


def test_resampling_removes_what_would_alias() -> None:
    tone = np.sin(2 * np.pi * 12000 * np.arange(48000) / 48000).astype(np.float32)
    assert np.abs(resample(tone, 48000, 1000.0, 16000, 10000)).max() < 0.02


@pytest.mark.parametrize("rate", [16000, 16001])
def test_parts_are_the_same_as_the_whole(rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal(44100).astype(np.float32)
    whole = resample(noise, 44100, 10.25, rate, 12000)
    begin = 5000
    part = resample(noise, 44100, 10.25 + begin * 44100 / rate, rate, 1000)
    np.testing.assert_allclose(part, whole[begin : begin + 1000], atol=2e-4)


@pytest.mark.parametrize("rate", [16000, 16001])
def test_outside_is_silence_that_costs_nothing(rate: int) -> None:
    tone = np.ones(4410, np.float32)
    began = time.monotonic()
    got = resample(tone, 44100, -44100.0 * 50, rate, rate * 3000)
    assert time.monotonic() - began < 2.0
    heard = np.flatnonzero(np.abs(got) > 0.5) / rate
    assert heard[0] == pytest.approx(50.0, abs=1e-3)
    assert heard[-1] == pytest.approx(50.1, abs=1e-3)
    assert resample(tone, 44100, 44100.0 * 50, rate, 100).tolist() == [0.0] * 100


@pytest.mark.parametrize("rate", [44101, 767_957, 9_999_991])
def test_rates_without_a_common_factor_take_bounded_time(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    began = time.monotonic()
    got = resample(tone, 44100, 100.0, rate, 200_000)
    assert time.monotonic() - began < 5.0
    expected = np.sin(2 * np.pi * 440 * (100 / 44100 + np.arange(200_000) / rate))
    inside = min(200_000, rate // 2)
    assert np.abs(got[:inside] - expected[:inside]).max() < 2e-3


@pytest.mark.parametrize("rate", [16000, 16001])
def test_it_can_be_given_up_at_any_moment(rate: int) -> None:
    noise = np.zeros(44100 * 120, np.float32)
    calls: list[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) == 20:
            raise DecodeTimeout("v", "enough")

    with pytest.raises(DecodeTimeout):
        resample(noise, 44100, 0.0, rate, rate * 120, check)
    assert np.diff(calls).max() < 0.5
