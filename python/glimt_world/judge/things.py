"""The things in a clip: masks from what is neither sky nor floor, linked through time, with their colour and shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from glimt_world.judge.background import TOLERANCE, Array

Mask = npt.NDArray[np.bool_]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
# Hues in degrees where one colour's name ends and the next one's begins.
_HUE_ENDS = (15.0, 41.0, 90.0, 180.0, 257.0, 325.0)
_CHROMA = 0.16  # max - min of RGB below which a pixel is white or black
_BLACK = 0.25

LEAST_AREA = 22  # pixels of the working picture
GRID = 24


@dataclass(frozen=True)
class Blob:
    """One thing in one frame: its box in pixels (right, bottom exclusive), area, colour class and mask in the box."""

    left: int
    top: int
    right: int
    bottom: int
    area: int
    colour: int
    mask: Mask

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass
class Track:
    """One thing through the clip: the frames where it was seen and its blob in each."""

    frames: list[int] = field(default_factory=list)
    blobs: list[Blob] = field(default_factory=list)

    @property
    def area(self) -> int:
        return sum(blob.area for blob in self.blobs)

    @property
    def colour(self) -> int:
        votes = np.zeros(len(COLOURS))
        for blob in self.blobs:
            votes[blob.colour] += blob.area
        return int(np.argmax(votes))


def colour_classes(pixels: Array) -> npt.NDArray[np.int64]:
    """The index into COLOURS of each pixel [..., 3]."""
    high, low = pixels.max(axis=-1), pixels.min(axis=-1)
    chroma = np.maximum(high - low, 1e-6)
    r, g, b = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    hue = np.where(high == r, ((g - b) / chroma) % 6, np.where(high == g, (b - r) / chroma + 2, (r - g) / chroma + 4))
    named = np.searchsorted(_HUE_ENDS, 60 * hue, side="right") % 6
    neutral = np.where(high < _BLACK, 7, 6)
    # A dim pixel keeps its hue down to a smaller chroma than a bright one: shade scales both.
    grey = chroma < np.maximum(_CHROMA * np.minimum(1.0, high / 0.6 + 0.25), 0.10)
    out: npt.NDArray[np.int64] = np.where(grey, neutral, named)
    return out


def find_tracks(frames: Array, strange: Array, uneven: Mask | None = None) -> list[Track]:
    """Every thing seen in at least half of the clip, largest first.

    ``uneven``: where a grey floor would be lit too differently to be plain floor (but might be in shadow); there the
    darker side of a white thing hides among the floor's own shades.
    """
    tracks: list[Track] = []
    mask = strange > TOLERANCE
    for t in range(len(frames)):
        blobs = _blobs(frames[t], mask[t])
        if uneven is not None and any(COLOURS[blob.colour] == "white" for blob in blobs):
            blobs = _blobs(frames[t], _with_dark_sides(mask[t], uneven[t], blobs))
        _link(tracks, t, _joined(blobs), width=frames.shape[2])
    tracks = _rejoin(tracks)
    largest = max((track.area for track in tracks), default=0)
    # A smear that comes and goes is no thing, nor is a speck beside one.
    tracks = [k for k in tracks if len(k.frames) >= 0.5 * len(frames) and k.area >= 0.06 * largest]
    return sorted(tracks, key=lambda track: -track.area)


def _blobs(frame: Array, mask: Mask) -> list[Blob]:
    import cv2

    clean = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    clean = cv2.morphologyEx(clean, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(clean, connectivity=4)
    out: list[Blob] = []
    for i in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[i])
        if area < LEAST_AREA or w < 4 or h < 4:
            continue
        part = labels[y : y + h, x : x + w] == i
        out.extend(_split(frame[y : y + h, x : x + w], part, x, y))
    return out


def _with_dark_sides(mask: Mask, uneven: Mask, blobs: list[Blob]) -> Mask:
    """The mask with uneven places beside white blobs, above the rows that their shadows can reach."""
    out = mask.copy()
    for blob in blobs:
        if COLOURS[blob.colour] == "white":
            tall = blob.bottom - blob.top
            rows = slice(max(0, blob.top - 2), blob.bottom - round(0.3 * tall))
            cols = slice(max(0, blob.left - round(0.7 * tall)), blob.right + round(0.7 * tall))
            out[rows, cols] |= uneven[rows, cols]
    return out


def _joined(blobs: list[Blob]) -> list[Blob]:
    """Blobs, pieces of one colour that nearly touch taken as one thing, holes and notches filled: things are convex."""
    import cv2

    out: list[Blob] = []
    for blob in sorted(blobs, key=lambda b: -b.area):
        for i, other in enumerate(out):
            gap_x = max(blob.left, other.left) - min(blob.right, other.right)
            gap_y = max(blob.top, other.top) - min(blob.bottom, other.bottom)
            if blob.colour == other.colour and max(gap_x, gap_y) <= 3:
                out[i] = _union(other, blob)
                break
        else:
            out.append(blob)
    for i, blob in enumerate(out):
        points = np.argwhere(blob.mask)[:, ::-1].astype(np.int32)
        hull = np.zeros(blob.mask.shape, np.uint8)
        cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
        out[i] = replace(blob, mask=hull > 0, area=int(hull.sum()))
    return out


def _union(a: Blob, b: Blob) -> Blob:
    left, top = min(a.left, b.left), min(a.top, b.top)
    right, bottom = max(a.right, b.right), max(a.bottom, b.bottom)
    mask = np.zeros((bottom - top, right - left), bool)
    for blob in (a, b):
        mask[blob.top - top : blob.bottom - top, blob.left - left : blob.right - left] |= blob.mask
    return Blob(left, top, right, bottom, int(mask.sum()), a.colour, mask)


def _blob(part: Mask, x: int, y: int, colour: int) -> Blob | None:
    rows, cols = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if len(rows) < 4 or len(cols) < 4 or part.sum() < LEAST_AREA:
        return None
    part = part[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    left, top = x + int(cols[0]), y + int(rows[0])
    return Blob(left, top, left + part.shape[1], top + part.shape[0], int(part.sum()), colour, part)


def _split(pixels: Array, part: Mask, x: int, y: int) -> list[Blob]:
    """One blob, or two where things of two colours touch."""
    import cv2

    padded = cv2.erode(np.pad(part, 1).astype(np.uint8), np.ones((3, 3), np.uint8))
    inner = padded[1:-1, 1:-1] > 0
    if inner.sum() < 8:
        inner = part
    classes = colour_classes(pixels)
    share = np.bincount(classes[inner], minlength=len(COLOURS)) / inner.sum()
    first, second = (int(i) for i in np.argsort(-share)[:2])
    if share[second] > 0.2:
        at = np.arange(part.shape[1])
        columns = [float(np.median(np.broadcast_to(at, part.shape)[inner & (classes == c)])) for c in (first, second)]
        if abs(columns[0] - columns[1]) > 0.33 * part.shape[1]:
            middle = sum(columns) / 2
            nearer = (at < middle) == (columns[0] < middle)
            of_first = (classes == first) | ((classes != second) & nearer[None])
            pair = [_blob(part & of_first, x, y, first), _blob(part & ~of_first, x, y, second)]
            return [blob for blob in pair if blob is not None]
    blob = _blob(part, x, y, first)
    return [blob] if blob is not None else []


def _link(tracks: list[Track], t: int, blobs: list[Blob], width: int) -> None:
    """Give each blob to the nearest track of its colour, or else start a new one."""
    pairs = []
    for i, track in enumerate(tracks):
        last, gap = track.blobs[-1], t - track.frames[-1]
        if gap > 6:
            continue
        for j, blob in enumerate(blobs):
            (x0, y0), (x1, y1) = last.centre, blob.centre
            distance = float(np.hypot(x1 - x0, y1 - y0)) / width
            unlike = 0.08 * (blob.colour != last.colour) + 0.08 * abs(np.log(blob.area / last.area))
            if distance < 0.10 + 0.03 * gap:
                pairs.append((distance + unlike, i, j))
    taken_tracks: set[int] = set()
    taken: set[int] = set()
    for _, i, j in sorted(pairs):
        if i not in taken_tracks and j not in taken:
            tracks[i].frames.append(t)
            tracks[i].blobs.append(blobs[j])
            taken_tracks.add(i)
            taken.add(j)
    tracks.extend(Track([t], [blob]) for j, blob in enumerate(blobs) if j not in taken)


def _rejoin(tracks: list[Track]) -> list[Track]:
    """Pieces of one track that was lost for a while: same colour, one after the other."""
    out: list[Track] = []
    for track in sorted(tracks, key=lambda k: k.frames[0]):
        for earlier in out:
            if earlier.frames[-1] < track.frames[0] and earlier.colour == track.colour:
                earlier.frames += track.frames
                earlier.blobs += track.blobs
                break
        else:
            out.append(track)
    return out


def shape_of(track: Track, height: int, width: int) -> tuple[str, dict[str, float]]:
    """ball, cube or cone, from the mean silhouette over the frames where the whole thing is in the picture."""
    grids = [_grid(blob) for blob in track.blobs if _whole(blob, height, width)] or [_grid(b) for b in track.blobs]
    mean = np.mean(grids, axis=0)
    aspect = float(np.median([(b.right - b.left) / (b.bottom - b.top) for b in track.blobs]))
    q = GRID // 6
    top = float(mean[:q].mean())
    upper = float(mean[q : GRID // 2].mean())
    lower = float(mean[GRID // 2 : GRID - q].mean())
    corners = float((mean[:q, :q].mean() + mean[:q, -q:].mean()) / 2)
    found = {"top": top, "upper": upper, "lower": lower, "corners": corners, "aspect": aspect}
    if upper < 0.77 and top < 0.48:
        return "cone", found
    return ("cube" if corners > 0.27 else "ball"), found


def _whole(blob: Blob, height: int, width: int) -> bool:
    return blob.left > 0 and blob.top > 0 and blob.right < width and blob.bottom < height


def _grid(blob: Blob) -> Array:
    import cv2

    out: Array = cv2.resize(blob.mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return out
