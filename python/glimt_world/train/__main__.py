"""``python -m glimt_world.train {all,vae,dit,tiny,export}``: on a GPU where there is one; every stage resumes."""

from __future__ import annotations

import argparse
from pathlib import Path

from glimt_world.train.forms import FORMS, form_of

BUNDLED = Path(__file__).parents[1] / "checkpoint"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m glimt_world.train", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    everything = stages.add_parser("all", help="autoencoder, transformer, checkpoint, one after the other")
    everything.add_argument("folder", type=Path, help="gets vae/, dit/ and checkpoint/")
    everything.add_argument("--vae-minutes", type=float, default=60.0)
    everything.add_argument("--dit-minutes", type=float, default=360.0)
    vae = stages.add_parser("vae", help="the autoencoder")
    vae.add_argument("folder", type=Path)
    vae.add_argument("--minutes", type=float, default=60.0, help="wall time of the whole run, resumes included")
    vae.add_argument("--start", type=Path, help="checkpoint to begin from, instead of fresh weights")
    vae.add_argument("--decoder-only", action="store_true", help="leave the latents as they are")
    dit = stages.add_parser("dit", help="the transformer and its text encoder, on the autoencoder of VAE")
    dit.add_argument("folder", type=Path)
    dit.add_argument("--vae", type=Path, required=True, help="folder of the vae stage, or a checkpoint")
    dit.add_argument("--minutes", type=float, default=360.0, help="wall time of the whole run, resumes included")
    dit.add_argument("--start", type=Path, help="checkpoint to begin from, instead of fresh weights")
    tiny = stages.add_parser("tiny", help="a tiny decoder of the TAEHV form, on the autoencoder of VAE")
    tiny.add_argument("folder", type=Path)
    tiny.add_argument("--vae", type=Path, default=BUNDLED, help="folder of the vae stage, or a checkpoint (bundled)")
    tiny.add_argument("--minutes", type=float, default=60.0, help="wall time of the whole run, resumes included")
    for stage in (everything, vae, dit):
        stage.add_argument("--form", choices=FORMS, default="small", help="small: two CPU cores; large: a GPU")
    for stage in (everything, vae):
        stage.add_argument("--scale", type=int, default=1, help="clips per step of the autoencoder, in units of 1-2")
    for stage in (everything, dit):
        stage.add_argument("--batch", type=int, default=16, help="clips per step of the transformer")
    export = stages.add_parser("export", help="write the checkpoint that glimt and Diffusers open")
    export.add_argument("target", type=Path)
    export.add_argument("--vae", type=Path, required=True)
    export.add_argument("--dit", type=Path, required=True)
    export.add_argument("--tiny", type=Path, help="folder of the tiny stage")
    args = parser.parse_args()
    _STAGES[args.stage](args)


def _all(args: argparse.Namespace) -> None:
    common = {"form": args.form, "start": None}
    vae, dit, target = (args.folder / name for name in ("vae", "dit", "checkpoint"))
    _vae(argparse.Namespace(folder=vae, minutes=args.vae_minutes, decoder_only=False, scale=args.scale, **common))
    _dit(argparse.Namespace(folder=dit, vae=vae, minutes=args.dit_minutes, batch=args.batch, **common))
    _export(argparse.Namespace(vae=vae, dit=dit, target=target))


def _vae(args: argparse.Namespace) -> None:
    from glimt_world.round_trip import report, round_trips
    from glimt_world.train import export, vae

    vae.train(
        args.folder,
        args.form,
        minutes=args.minutes,
        start=args.start,
        decoder_only=args.decoder_only,
        scale=args.scale,
    )
    # The decoder alone leaves the latents, and so their statistics, as they were.
    export.measure(args.folder, keep=args.start if args.decoder_only else None)
    print(report(round_trips(export.load_vae(args.folder), 32, size=form_of(args.folder).size)))


def _dit(args: argparse.Namespace) -> None:
    from glimt_world.train import dit, export

    vae = export.load_vae(args.vae)
    dit.train(args.folder, args.form, vae, minutes=args.minutes, start=args.start, batch=args.batch)


def _tiny(args: argparse.Namespace) -> None:
    from glimt_world.train import export, tiny

    vae = export.load_vae(args.vae)
    size, num_frames = export.clips_of(args.vae)
    model = tiny.train(args.folder, vae, size=size, num_frames=num_frames, minutes=args.minutes)
    print(tiny.report(tiny.compare(model, vae, 16, size=size)))


def _export(args: argparse.Namespace) -> None:
    from glimt_world.train.export import export

    export(args.vae, args.dit, args.target, args.tiny)


_STAGES = {"all": _all, "vae": _vae, "dit": _dit, "tiny": _tiny, "export": _export}


if __name__ == "__main__":
    main()
