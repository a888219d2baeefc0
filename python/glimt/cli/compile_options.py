"""The options of ``glimt compile`` and ``glimt engines``."""

from __future__ import annotations

import argparse

from glimt.cli import values

_DEFAULT_PLACE = "default: the user's cache, ~/.cache/glimt/engines"


def add_compile(parser: argparse.ArgumentParser) -> None:
    add, names = parser.add_argument, values.lenient(values.names)
    add(
        "model",
        nargs="?",
        default="glimt-world",
        metavar="MODEL",
        help="name, folder, file or Hub id; default: bundled",
    )
    add(
        "--bucket",
        type=values.lenient(values.bucket),
        action=values.Gather,
        metavar="WxHxF",
        help="width, height and frames of the clips; several with commas or by giving it again (needed)",
    )
    add("--target", type=names, action=values.Gather, metavar="sm_89,...", help="the cards they are for (needed)")
    add("--backend", default="tensorrt-rtx", metavar="NAME", help="tensorrt-rtx (default) or tensorrt")
    add("--precision", default="bf16", metavar="NAME", help="bf16 (default) or fp16")
    add("--unguided", action="store_true", help="one prompt a call; default: as the model's own guidance has it")
    add("--base", metavar="MODEL", help="what a model that is only a transformer takes the rest from")
    add("--out", metavar="DIR", help=f"where they go; {_DEFAULT_PLACE}")
    add("--offline", action="store_true", default=None, help="never touch the network")
    add("--allow-pickle", action="store_true", default=None, help="load pickled weights, which can run code")


def add_engines(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    actions = ("list", "show", "verify", "prune")
    add(
        "action",
        nargs="?",
        choices=actions,
        default="list",
        metavar="ACTION",
        help=f"{', '.join(actions)}; default: list",
    )
    add("engine", nargs="?", metavar="ENGINE", help="of show: the beginning of its name, as list has it")
    add("--out", metavar="DIR", help=f"where they are; {_DEFAULT_PLACE}")
    add(
        "--max",
        type=values.lenient(values.byte_count),
        metavar="20GiB",
        help="of prune: keep those used last, as many as go into this",
    )
    add("--graphs", action="store_true", help="of prune: also the exported graphs; building anew exports them again")
