"""``python -m glimt_world.train {vae,dit,export} ...``: each stage in its own folder, each resumable."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="glimt_world.train", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    vae = stages.add_parser("vae", help="the autoencoder")
    vae.add_argument("folder", type=Path)
    vae.add_argument("--minutes", type=float, default=40.0, help="wall time of the whole run, resumes included")
    vae.add_argument("--start", type=Path, help="checkpoint to begin from, instead of fresh weights")
    vae.add_argument("--decoder-only", action="store_true", help="leave the latents as they are")
    vae.add_argument("--scale", type=int, default=1, help="clips per step, in units that fit two CPU cores")
    dit = stages.add_parser("dit", help="the transformer and its text encoder, on the autoencoder of VAE")
    dit.add_argument("folder", type=Path)
    dit.add_argument("--vae", type=Path, required=True, help="folder of the vae stage")
    dit.add_argument("--minutes", type=float, default=80.0, help="wall time of the whole run, resumes included")
    dit.add_argument("--start", type=Path, help="checkpoint to begin from, instead of fresh weights")
    dit.add_argument("--batch", type=int, default=16, help="clips per step")
    export = stages.add_parser("export", help="write the checkpoint that glimt and Diffusers open")
    export.add_argument("target", type=Path)
    export.add_argument("--vae", type=Path, required=True)
    export.add_argument("--dit", type=Path, required=True)
    args = parser.parse_args()
    _STAGES[args.stage](args)


def _vae(args: argparse.Namespace) -> None:
    from glimt_world.train import export, vae

    vae.train(args.folder, minutes=args.minutes, start=args.start, decoder_only=args.decoder_only, scale=args.scale)
    export.measure(args.folder)
    found = export.round_trip(export.load_vae(args.folder))
    print(f"round trip of {len(found)} held-out clips: {sum(found) / len(found):.2f} dB, worst {min(found):.2f} dB")


def _dit(args: argparse.Namespace) -> None:
    from glimt_world.train import dit, export

    vae = export.load_vae(args.vae)
    dit.train(args.folder, vae, minutes=args.minutes, start=args.start, batch=args.batch)


def _export(args: argparse.Namespace) -> None:
    from glimt_world.train.export import export

    export(args.vae, args.dit, args.target)


_STAGES = {"vae": _vae, "dit": _dit, "export": _export}


if __name__ == "__main__":
    main()
