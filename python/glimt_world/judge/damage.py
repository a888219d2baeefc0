"""Makes a rendered clip as bad as a generated one, to see how much the judge bears."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


def damaged(
    frames: Frames, rng: np.random.Generator, *, blur: float = 0.8, noise: float = 6.0, quality: int = 25
) -> Frames:
    """Blurred (sigma in pixels), drifting in colour, noisy (deviation of 255), packed as JPEG: about 30 dB."""
    import cv2

    tint = rng.normal(0, 3.0, (2, 3))
    out = np.empty_like(frames)
    for t, frame in enumerate(frames):
        s = t / max(len(frames) - 1, 1)
        soft = cv2.GaussianBlur(frame, (0, 0), blur).astype(np.float32) + (1 - s) * tint[0] + s * tint[1]
        rough = np.clip(soft + rng.normal(0, noise, soft.shape), 0, 255).astype(np.uint8)
        ok, packed = cv2.imencode(".jpg", rough[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not ok:
            raise RuntimeError("OpenCV could not pack a frame as JPEG")
        out[t] = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1]
    return out


def psnr(a: Frames, b: Frames) -> float:
    """Peak signal to noise ratio in dB of two clips of bytes."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
