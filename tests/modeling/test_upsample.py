"""Fake high resolution on the device has the pixels that OpenCV's bicubic gives."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from rushes.modeling.upsample import enlarge_high


def test_enlarging_equals_opencv_within_one_level() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    high = torch.from_numpy(frame.transpose(2, 0, 1)[None, None].copy())  # B N C h w
    low = torch.zeros(1, 1, 6, 3, 24, 40, dtype=torch.uint8)
    enlarged = enlarge_high(high, low)
    assert enlarged.shape == (1, 1, 3, 96, 160)
    theirs = cv2.resize(frame, (160, 96), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    assert np.abs(enlarged[0, 0].numpy() - theirs).max() <= 1  # OpenCV computes in fixed point


def test_real_high_resolution_passes_through() -> None:
    high = torch.randint(0, 256, (2, 1, 3, 96, 160), dtype=torch.uint8)
    low = torch.zeros(2, 1, 6, 3, 24, 40, dtype=torch.uint8)
    assert enlarge_high(high, low) is high
    assert enlarge_high(high, None) is high
