"""CLIP image tokens for Wan 2.1 image-to-video, by transformers' vision tower.

``[H, W, 3]`` pictures -> the CLIP processor's resize, crop and normalization -> hidden states of the last layer but
one, ``[n, 257, 1280]`` for ViT-H. As Diffusers' ``WanImageToVideoPipeline.encode_image``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from glimt.errors import CheckpointError, MissingDependencyError


class ImageEncoder:
    """``model``: a transformers ``CLIPVisionModel``; ``processor``: its ``CLIPImageProcessor``."""

    def __init__(self, model: nn.Module, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @torch.no_grad()
    def encode(self, pictures: list[npt.NDArray[np.uint8]]) -> Tensor:
        """Pictures ``[H, W, 3]`` uint8 (of any sizes) -> tokens ``[n, Li, image_dim]`` in the model's dtype."""
        from PIL import Image

        images = [Image.fromarray(picture) for picture in pictures]
        weight = next(self.model.parameters())
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=pixels.to(weight.device, weight.dtype), output_hidden_states=True)
        hidden: Tensor = output.hidden_states[-2]
        return hidden


def load_processor(folder: Path) -> Any:
    """The CLIP image processor in ``folder`` (``preprocessor_config.json``).

    Raises CheckpointError if there is none, MissingDependencyError without transformers.
    """
    try:
        from transformers import CLIPImageProcessor
    except ImportError as error:
        raise MissingDependencyError("transformers", "encode images") from error
    try:
        return CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no CLIP image processor: {error}") from error
