"""Conditioning images as immutable values: a path, or RGB bytes copied from whatever the caller held.

Standard library only: arrays and PIL images are read through what they offer, never by importing their packages.
Decoding a file into pixels is done where pixels are needed, not here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimt.errors import RequestError

_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
_AVIF_BRANDS = (b"ftypavif", b"ftypavis", b"ftypmif1")  # a video's box says something else


@dataclass(frozen=True)
class ImageFile:
    """An image in a file. ``sha256`` is of the file's bytes, once known ("" before)."""

    path: str
    sha256: str = field(default="", compare=False)


@dataclass(frozen=True)
class ImagePixels:
    """An image in memory: ``rgb`` holds height * width * 3 bytes, rows from the top."""

    height: int
    width: int
    rgb: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.rgb).hexdigest()


@dataclass(frozen=True)
class BadImage:
    """Something given as an image that is none; ``reason`` says why. Reported when the request is resolved."""

    reason: str


ImageSource = ImageFile | ImagePixels


def as_image_source(value: Any) -> ImageFile | ImagePixels | BadImage | None:
    """The image a caller gave, as a value of its own; anything unusable becomes a :class:`BadImage`."""
    if value is None or isinstance(value, (ImageFile, ImagePixels, BadImage)):
        return value
    if isinstance(value, (str, os.PathLike)):
        return ImageFile(os.fspath(value)) if isinstance(os.fspath(value), str) else BadImage("the path is not text")
    if hasattr(value, "mode") and hasattr(value, "convert"):  # PIL
        width, height = value.size
        return ImagePixels(int(height), int(width), bytes(value.convert("RGB").tobytes()))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _from_array(value)
    return BadImage(f"a {type(value).__name__} is not a path, a PIL image or an array [H, W, 3]")


def check_image(source: ImageFile | ImagePixels | BadImage) -> list[str]:
    """What is wrong with an image; empty when it can be used. Looks at a file's first bytes only."""
    if isinstance(source, BadImage):
        return [source.reason]
    if isinstance(source, ImagePixels):
        if source.height > 0 and source.width > 0 and len(source.rgb) == 3 * source.height * source.width:
            return []
        return [f"{len(source.rgb)} bytes do not make an RGB image of {source.width}x{source.height}"]
    try:
        with Path(source.path).open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return [f"cannot read {source.path!r}: {reason}"]
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    known = head.startswith(_SIGNATURES) or webp or head[4:12] in _AVIF_BRANDS
    if known:
        return []
    return [f"{source.path!r} is not a picture (PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF)"]


def image_to_dict(source: ImageFile | ImagePixels | BadImage | None) -> dict[str, Any] | None:
    """JSON-able form: a file as path and digest of its bytes, an image in memory packed whole (zlib, base64)."""
    if source is None:
        return None
    if isinstance(source, BadImage):
        return {"bad": source.reason}
    if isinstance(source, ImageFile):
        return {"path": source.path, "sha256": source.sha256 or file_sha256(source.path)}
    packed = base64.b64encode(zlib.compress(source.rgb)).decode("ascii")
    return {"height": source.height, "width": source.width, "rgb_zlib_base64": packed}


def image_from_dict(value: Any) -> Any:
    """The inverse of :func:`image_to_dict`; anything but a mapping is passed on as the caller's own image.

    Raises:
        RequestError: the packed bytes are damaged, or the file is not the one recorded.
    """
    if not isinstance(value, Mapping):
        return value
    if "bad" in value:
        return BadImage(str(value["bad"]))
    if "path" in value:
        path, digest = str(value["path"]), str(value.get("sha256", ""))
        found = file_sha256(path)
        if digest and found and found != digest:
            raise RequestError(f"{path!r} has changed: sha256 {found[:12]}, recorded {digest[:12]}")
        return ImageFile(path, digest)
    try:
        rgb = zlib.decompress(base64.b64decode(value["rgb_zlib_base64"], validate=True))
        return ImagePixels(int(value["height"]), int(value["width"]), rgb)
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise RequestError(f"the recorded image cannot be unpacked: {error}") from error


def file_sha256(path: str) -> str:
    """SHA-256 of a file's bytes, or "" when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return ""


def _from_array(value: Any) -> ImagePixels | BadImage:
    """[H, W, 3] of uint8, or of floats in [0, 1] rounded to uint8."""
    shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        return BadImage(f"an array of shape {list(shape)} is not [H, W, 3]")
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if dtype.startswith("float"):
        if not (float(value.min()) >= 0.0 and float(value.max()) <= 1.0):  # false for NaN too
            return BadImage("an array of floats must be finite and in [0, 1]")
        value, dtype = (value * 255.0).round().astype("uint8"), "uint8"
    if dtype != "uint8":
        return BadImage(f"an array of {dtype} is neither uint8 nor floats in [0, 1]")
    return ImagePixels(int(shape[0]), int(shape[1]), value.tobytes())
