"""``python -m glimt_world.judge``: how often clips show what they should, per attribute, with 95 % intervals."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from glimt_world.judge.sweep import Frames, ModelSweep, Tally, ground_truth, of_model, sheet
from glimt_world.judge.verdict import table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glimt_world.judge", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ground-truth", type=int, metavar="N", help="judge N random renders: the judge's own accuracy")
    what.add_argument("--model", nargs="?", const="glimt-world", help="judge a model's clips of held-out captions")
    parser.add_argument("--damaged", action="store_true", help="with --ground-truth: blur, noise, JPEG, to about 30 dB")
    parser.add_argument("--seed", type=int, default=0, help="with --ground-truth: which random scenes")
    parser.add_argument("--captions", type=int, default=200, help="with --model: how many held-out captions")
    parser.add_argument("--seeds", type=int, default=3, help="with --model: clips per caption, seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, help="with --model: inference steps (the model's own if left out)")
    parser.add_argument("--guidance", type=float, help="with --model: guidance scale (the model's own if left out)")
    parser.add_argument("--log", type=Path, help="with --model: JSON lines of verdicts; a second run goes on")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) of the first clips with their verdicts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def _generator(sweep: ModelSweep) -> Any:
    import glimt

    engine = glimt.Engine.load(sweep.model)

    def generate(text: str, seed: int) -> Frames:
        request = glimt.GenerateRequest(
            prompt=text, seed=seed, num_inference_steps=sweep.steps, guidance_scale=sweep.guidance
        )
        frames: Frames = engine.generate(request).frames
        return frames

    return generate


def _judged(args: argparse.Namespace) -> tuple[Tally, dict[str, Any]]:
    if args.ground_truth is not None:
        tally, quality = ground_truth(args.ground_truth, seed=args.seed, damage=args.damaged)
        about: dict[str, Any] = {"clips of": "ground truth", "seed": args.seed}
        return tally, about if quality is None else {**about, "damaged to dB": round(quality, 2)}
    sweep = ModelSweep(args.model, args.captions, args.seeds, args.steps, args.guidance)
    tally = of_model(sweep, _generator(sweep), args.log)
    return tally, {"clips of": sweep.model, "captions": sweep.captions, "seeds": sweep.seeds}


def main() -> int:
    parser = _parser()
    args = parser.parse_args()
    if min(args.captions, args.seeds) < 1 or (args.ground_truth is not None and args.ground_truth < 1):
        parser.error("the number of clips must be at least 1")
    if args.damaged and args.ground_truth is None:
        parser.error("--damaged goes with --ground-truth")
    tally, about = _judged(args)
    if args.sheet is not None:
        sheet(tally.shown, args.sheet)
    if args.json:
        print(json.dumps({**about, **tally.summary()}))
        return 0
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(table(tally.rates()))
    for mistake, count in tally.mistakes.most_common(20):
        print(f"  {count:>4} x {mistake}")
    if tally.judging_s:
        print(f"judging took {1000 * tally.judging_s / max(len(tally.results), 1):.0f} ms a clip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
