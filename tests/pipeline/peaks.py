"""``python tests/pipeline/peaks.py``: what decoding and encoding really take in memory, beside what the plan says.

Run in a process of its own, and with memory given back to the system at once (``mallopt``), so that the most resident
memory there was is that of the tensors alive together and of what the libraries hold, not of what was free already.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from glimt.env import rss_bytes
from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt.pipeline.decode import decoded
from glimt.pipeline.encode import encode
from glimt.plan.vae import DecodePlan, Way, encode_bytes, plan_decode
from glimt.shapes import LatentGrid, PixelGrid
from glimt.weights.hub import open_model

_M_MMAP_THRESHOLD = -3
FORMS = {
    "2.1": WanVaeConfig(base_dim=24),
    "2.2": WanVaeConfig(
        base_dim=16, decoder_base_dim=32, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_spatial=16, latents_mean=(0.0,) * 48, latents_std=(1.0,) * 48,
    ),
}  # fmt: skip


def autoencoder(form: str) -> WanVae:
    if form == "bundled":
        return open_model("glimt-world").load_component("vae", "cpu", torch.float32)  # type: ignore[return-value]
    torch.manual_seed(0)
    return WanVae(FORMS[form]).eval().requires_grad_(False)


def most_bytes(run: Callable[[], object]) -> int:
    """The most resident memory during ``run``, beside what there was before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is resident
    before = rss_bytes()
    run()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 - before
    raise RuntimeError("this system does not tell a process's high-water mark")


def exhaust(vae: WanVae, latents: torch.Tensor, layout: DecodePlan) -> None:
    for _ in decoded(vae, latents, layout):
        pass


def decode(vae: WanVae, frames: int, height: int, width: int, room: int = 2**63) -> dict[str, object]:
    grid = LatentGrid(vae.config.z_dim, frames, height, width)
    layout = plan_decode(vae.config, grid, 4, room, way=Way.FRAMES)
    latents = torch.randn(grid.shape(1), generator=torch.Generator().manual_seed(0))
    peak = most_bytes(lambda: exhaust(vae, latents, layout))
    return {"planned": layout.peak_bytes, "peak": peak, "tiles": [layout.rows, layout.columns]}


def encoding(vae: WanVae, frames: int, height: int, width: int) -> dict[str, object]:
    planned = encode_bytes(vae.config, PixelGrid(frames, height, width), 4, by_frames=True)
    picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    return {"planned": planned, "peak": most_bytes(lambda: encode(vae, (picture for _ in range(frames))))}


def main(form: str, cases: list[list[int]]) -> None:
    """``cases``: [latent frames, h, w] or [latent frames, h, w, room] to decode, [-frames, H, W] to encode."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    vae = autoencoder(form)
    decode(vae, 2, 4, 4)  # what is loaded and compiled at first use
    encoding(vae, 5, 32, 32)
    found = [encoding(vae, -case[0], *case[1:]) if case[0] < 0 else decode(vae, *case) for case in cases]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
