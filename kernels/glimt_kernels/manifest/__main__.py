"""Writes a folder of cubins with the manifest that says how to launch them, or verifies one.

    GLIMT_TRITON=1 python -m glimt_kernels.manifest --out DIR                          # the Wan family, every chip
    GLIMT_TRITON=1 python -m glimt_kernels.manifest --out DIR --op ada_norm --shape 12x128 --arch 89 --arch 120
    python -m glimt_kernels.manifest --verify DIR

A shape is HEADSxHEAD_DIM of a model. No GPU is needed to compile; about a second a cubin.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glimt_kernels.manifest.build import build, verify
from glimt_kernels.manifest.forms import DTYPES, OPS, SHAPES, forms
from glimt_kernels.manifest.spec import FILE, Manifest, ManifestError
from glimt_kernels.triton_env import ARCHS


def _shape(text: str) -> tuple[int, int]:
    heads, _, head_dim = text.partition("x")
    if not (heads.isdigit() and head_dim.isdigit() and int(heads) and int(head_dim)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write HEADSxHEAD_DIM, such as 12x128")
    return int(heads), int(head_dim)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glimt_kernels.manifest", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="the folder to write, new or empty")
    what.add_argument("--verify", type=Path, metavar="DIR", help="compare every byte of a folder with its manifest")
    parser.add_argument("--op", action="append", choices=tuple(OPS), default=[], help="only this op (may be repeated)")
    parser.add_argument(
        "--shape", action="append", type=_shape, metavar="HEADSxHEAD_DIM", help="of a model (may be repeated)"
    )
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="of its products (may be repeated)")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHS, help="only this chip (may be repeated)")
    return parser


def _summary(folder: Path, manifest: Manifest) -> str:
    cubins = [cubin for kernel in manifest.kernels for cubin in kernel.cubins]
    targets = ", ".join(dict.fromkeys(cubin.target for cubin in cubins))
    size = sum(cubin.num_bytes for cubin in cubins)
    return f"{folder / FILE}: {len(manifest.kernels)} kernels, {len(cubins)} cubins ({size} bytes) for {targets}"


def main(arguments: list[str] | None = None) -> int:
    parser = _arguments()
    args = parser.parse_args(arguments)
    try:
        if args.verify:
            manifest = verify(args.verify)
        else:
            chosen = forms(args.op, args.shape or SHAPES, args.dtype or DTYPES)
            manifest = build(chosen, args.arch or ARCHS, args.out)
    except (ManifestError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(_summary(args.verify or args.out, manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
