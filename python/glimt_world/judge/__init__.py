"""Reads clips of the little world back with classical vision (OpenCV and numpy; nothing learned, no network).

``read_clip`` says what a clip shows, ``judge_clip`` whether that is what a caption states, ``accuracy`` how often over
many clips. ``python -m glimt_world.judge --help``: the same for ground truth and for a model, in one command.
"""

from glimt_world.judge.reading import Found, Reading, read_clip
from glimt_world.judge.verdict import ATTRIBUTES, Check, Rate, accuracy, compare, judge_clip, table, verdict

__all__ = [
    "ATTRIBUTES",
    "Check",
    "Found",
    "Rate",
    "Reading",
    "accuracy",
    "compare",
    "judge_clip",
    "read_clip",
    "table",
    "verdict",
]
