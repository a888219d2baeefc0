"""The options of the ``glimt`` command.

Only ``argparse`` is imported, so that ``glimt --help`` is instant. Numbers are read leniently (``glimt.cli.values``):
all mistakes of a command line are reported together, and an unknown option comes with the names near it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from glimt.cli import compile_options, values
from glimt.suggest import did_you_mean

COMMANDS = {
    "generate": "make a video from a prompt",
    "plan": "say what a request would need (shapes, steps, memory, time) and run nothing",
    "decode": "make a video from latents",
    "encode": "make latents from a video or a picture",
    "models": "list the models glimt knows by name",
    "info": "list versions, devices and every implementation of every operation",
    "reproduce": "make the frames of a video again from the record in the file, and compare",
    "tune": "time the implementations of every operation on this machine and keep the fastest",
    "compile": "build TRT engines of a model, for any of the cards, on any machine",
    "engines": "list, show, verify or prune the TRT engines that were built",
    "bench": "time the kernels beside eager PyTorch and other libraries, correctness first",
}
_NEEDED = {
    "prompt": "say what is to be seen, in quotes",
    "output": "say where the video goes, as -o out.mp4",
    "file": "name an mp4 that glimt wrote",
    "what": "say what is to be timed: kernels",
    "decode file": "name a file of latents, as `glimt encode` writes it",
    "encode file": "name a video or a picture",
    "bucket": "say for which sizes, as --bucket 832x480x81",
    "target": "say for which cards, as --target sm_89,sm_120",
    "encode output": "say where the latents go, as -o clip.safetensors",
}
_NEGATIVE = re.compile(r"-\.?\d")  # how a value begins that is no option, though it has a minus sign
_EPILOG = """\
exit codes: 0 done; 1 the frames differ (reproduce), an engine is damaged (engines verify), or a fault in
            glimt; 2 the request cannot be met; 130 interrupted (unfinished files are removed)"""


class UsageError(Exception):
    """A command line that cannot be understood: the parser that says so, and every problem."""

    def __init__(self, parser: argparse.ArgumentParser, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.parser, self.problems = parser, tuple(problems)


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit; never guesses at an abbreviated option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = _NEGATIVE  # as from Python 3.14 on; before, -96x96 and -4GiB were options

    def error(self, message: str) -> NoReturn:
        raise UsageError(self, [message])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = f"argument {'/'.join(action.option_strings)}" if action.option_strings else "command"
            choices = ", ".join(map(str, action.choices))
            self.error(f"{name}: {value!r} is none of {choices}{did_you_mean(str(value), map(str, action.choices))}")

    def option_names(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace; UsageError that names everything wrong with it."""
    parser, commands = build()
    namespace, unknown = parser.parse_known_args(arguments)
    if namespace.command is None:
        raise UsageError(parser, [f"no command was given; there are {', '.join(COMMANDS)}"])
    command = commands[namespace.command]
    problems = list(_unknown_problems(unknown, command.option_names()))
    for action in command._actions:
        value = getattr(namespace, action.dest, None)
        if isinstance(value, values.Invalid):
            problems.append(f"{action.option_strings[-1]}: {value.reason}")
        elif value is None and action.dest in _NEEDED:
            needed = _NEEDED.get(f"{namespace.command} {action.dest}", _NEEDED[action.dest])
            problems.append(f"{action.dest} is missing: {needed}")
    if problems:
        raise UsageError(command, problems)
    return namespace


def _unknown_problems(unknown: Iterable[str], names: list[str]) -> Iterable[str]:
    its_value = False  # whether the word before was an unknown option, whose value this may be
    for word in unknown:
        name = word.split("=", 1)[0]
        if name.startswith("-") and not _NEGATIVE.match(name):
            yield f"{name}: no such option{did_you_mean(name, names)}"
            its_value = "=" not in word
        elif its_value:
            its_value = False
        else:
            yield f"{word!r} stands alone; a prompt of several words goes in quotes"


def build() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command, and those of its commands by name."""
    parser = Parser(
        prog="glimt",
        description="Video diffusion transformers: a prompt goes in, an mp4 comes out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    made: dict[str, Parser] = {}
    for name, text in COMMANDS.items():
        made[name] = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    _add_request(made["generate"])
    _add_output(made["generate"])
    _add_request(made["plan"])
    made["reproduce"].add_argument("file", nargs="?", metavar="FILE", help="an mp4 that glimt wrote")
    made["reproduce"].add_argument(
        "--anyway", action="store_true", help="run even if the model here is not the one in the record"
    )
    _add_decode(made["decode"])
    _add_encode(made["encode"])
    for name in ("generate", "plan", "reproduce", "decode", "encode"):
        _add_engine(made[name], reproduces=name == "reproduce")
    for name in ("generate", "reproduce", "decode", "encode"):
        made[name].add_argument("-q", "--quiet", action="store_true", help="no progress; notes and errors only")
    _add_bench(made["bench"])
    _add_tune(made["tune"])
    compile_options.add_compile(made["compile"])
    compile_options.add_engines(made["engines"])
    for command in made.values():
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return parser, made


def _add_decode(parser: Parser) -> None:
    add = parser.add_argument
    add("file", nargs="?", metavar="LATENTS.safetensors", help="latents [1, C, f, h, w], as `glimt encode` writes them")
    add("-o", "--output", metavar="FILE.mp4", help="the video (needed); replaced if it is there")
    add(
        "--fps", type=values.lenient(values.frame_rate), metavar="R", help="default: that of the file, else the model's"
    )
    crf = values.lenient(values.whole_number)
    add("--crf", type=crf, default=16, metavar="N", help="1 (best, large) to 51 (worst, small); default 16")
    add("--decoder", default="vae", metavar="NAME", help="vae, or tiny (faster; needs --quality lossy); default vae")
    add("--vae", metavar="FOLDER", help="by another family's autoencoder, as Diffusers writes it (glimt[diffusers])")
    add("--anyway", action="store_true", help="decode them even if they are another autoencoder's")


def _add_encode(parser: Parser) -> None:
    add = parser.add_argument
    add("file", nargs="?", metavar="CLIP", help="a video or a picture")
    add("-o", "--output", metavar="LATENTS.safetensors", help="the latents (needed); replaced if they are there")
    whole = values.lenient(values.whole_number)
    add("--frames", type=whole, metavar="N", help="only the first N; a model takes 4 n + 1; default: all")
    add("--size", type=values.lenient(values.size), metavar="WxH", help="stretch them to this size; default: their own")


def _add_bench(parser: Parser) -> None:
    names, path = values.lenient(values.names), values.lenient(values.path)
    add = parser.add_argument
    add("what", nargs="?", choices=("kernels",), metavar="kernels", help="what is timed: the kernels of glimt_kernels")
    add(
        "--op",
        type=names,
        action=values.Gather,
        default=(),
        metavar="A,B",
        help="only these ops, or workloads as attention/cross",
    )
    add(
        "--shapes",
        type=names,
        action=values.Gather,
        default=(),
        metavar="A,B",
        help="wan-1.3b-480p, ...; default: all on a GPU, tiny on a CPU",
    )
    add(
        "--providers",
        type=names,
        action=values.Gather,
        default=(),
        metavar="A,B",
        help="eager,compile,sdpa,cudnn,triton,...; default: all here",
    )
    add(
        "--lossy",
        type=names,
        action=values.Gather,
        default=(),
        metavar="A,B",
        help="providers that are timed though they are less exact",
    )
    add("--provider-file", type=path, metavar="FILE", help="Python file with PROVIDERS = {op: {name: function}}")
    add("--dtype", metavar="NAME", help="fp32, fp16 or bf16; default: bf16 on a GPU, fp32 on a CPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    add(
        "--repeats",
        type=values.lenient(values.whole_number),
        default=20,
        metavar="N",
        help="timed calls at most; default 20",
    )
    add("--out", type=path, metavar="DIR", help="folder for rows.jsonl, report.md and plots; goes on where it stopped")


def _add_tune(parser: Parser) -> None:
    names = values.lenient(values.names)
    add = parser.add_argument
    add(
        "--model", metavar="MODEL", help="at this model's shapes, by name, folder, file or Hub id; default: glimt-world"
    )
    add(
        "--shapes",
        type=names,
        action=values.Gather,
        default=(),
        metavar="A,B",
        help="at these shapes instead: wan-1.3b-480p, ...",
    )
    add(
        "--op",
        type=names,
        action=values.Gather,
        default=(),
        metavar="A,B",
        help="only these ops, or workloads as attention/cross",
    )
    add("--dtype", metavar="NAME", help="fp32, fp16 or bf16; default: bf16 on a GPU, fp32 on a CPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    add(
        "--repeats",
        type=values.lenient(values.whole_number),
        default=20,
        metavar="N",
        help="timed calls at most; default 20",
    )
    add("--offline", action="store_true", default=None, help="never touch the network")


class _Version(argparse.Action):
    """Asks for the version only when it is wanted: reading it takes longer than everything else here."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=options["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import glimt

        sys.stdout.write(f"glimt {glimt.__version__}\n")
        parser.exit()


def _add_request(parser: Parser) -> None:
    whole, number = values.lenient(values.whole_number), values.lenient(values.number)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what is to be seen, in quotes")
    group = parser.add_argument_group("request (what is not given is the model's own default)")
    group.add_argument("--size", type=values.lenient(values.size), metavar="WxH", help="width and height in pixels")
    group.add_argument("--frames", type=whole, metavar="N", help="number of frames")
    group.add_argument("--fps", type=values.lenient(values.frame_rate), metavar="R", help="24, 23.976, 24000/1001")
    group.add_argument("--steps", type=whole, metavar="N", help="denoising steps")
    group.add_argument("--guidance", type=number, metavar="G", help="how strongly the prompt pulls; 1 is no guidance")
    group.add_argument("--guidance-2", type=number, metavar="G", help="the same for the second expert of an A14B model")
    group.add_argument("--negative", default="", metavar="TEXT", help="what is not to be seen")
    group.add_argument(
        "--seed", type=values.lenient(values.seed), default=0, metavar="N", help="of the noise, or 'random'; default 0"
    )
    group.add_argument(
        "--variants",
        type=whole,
        default=1,
        metavar="N",
        help="N videos with the seeds SEED, SEED+1, ...; out.mp4 becomes out-SEED.mp4, out-SEED+1.mp4, ...",
    )
    group.add_argument("--solver", metavar="NAME", help="unipc, euler, dmd or rcm")
    group.add_argument("--shift", type=number, metavar="S", help="shift of the noise schedule")
    group.add_argument("--decoder", default="vae", metavar="NAME", help="vae, or tiny (faster, lossy); default vae")
    group.add_argument("--image", metavar="FILE", help="first frame (image-to-video models)")
    group.add_argument("--last-image", metavar="FILE", help="last frame (first-and-last-frame models)")


def _add_output(parser: Parser) -> None:
    whole = values.lenient(values.whole_number)
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="FILE.mp4", help="the video (needed); replaced if it is there")
    group.add_argument(
        "--crf", type=whole, default=16, metavar="N", help="1 (best, large) to 51 (worst, small); default 16"
    )
    group.add_argument("--sheet", metavar="FILE.png", help="also a contact sheet")
    group.add_argument("--webp", metavar="FILE.webp", help="also an animated WebP (one per variant)")
    group.add_argument("--gif", metavar="FILE.gif", help="also an animated GIF (one per variant)")
    group.add_argument("--preview-dir", metavar="DIR", help="write previews there while denoising")
    group.add_argument("--preview-every", type=whole, metavar="N", help="a preview every N steps; default about ten")
    group.add_argument("--preview", metavar="NAME", help="made by auto, tiny (decoder) or linear (map); default auto")


def _add_engine(parser: Parser, *, reproduces: bool) -> None:
    recorded = "; default: as recorded" if reproduces else ""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model",
        default=None if reproduces else "glimt-world",
        metavar="MODEL",
        help=f"name, folder, safetensors file or Hub id{recorded or '; default: the bundled glimt-world'}",
    )
    group.add_argument("--base", metavar="MODEL", help="what a model that is only a transformer takes the rest from")
    group.add_argument("--device", metavar="NAME", help=f"auto, cpu, cuda or cuda:N{recorded}")
    group.add_argument("--dtype", metavar="NAME", help=f"auto, float32, bfloat16 or float16{recorded}")
    group.add_argument(
        "--precision", metavar="NAME", help=f"full, int8 or fp8, the last two with --quality lossy{recorded}"
    )
    group.add_argument(
        "--quality", metavar="CLASS", help=f"loosest optimizations allowed: exact, equivalent or lossy{recorded}"
    )
    group.add_argument("--backend", metavar="NAME", help=f"eager, inductor, tensorrt or tensorrt-rtx{recorded}")
    group.add_argument("--engines", metavar="DIR", help="where TRT engines are; default: the user's cache")
    group.add_argument(
        "--memory-budget", type=values.lenient(values.byte_count), metavar="4GiB", help="never plan to need more"
    )
    group.add_argument(
        "--tiny-decoder", metavar="FILE", help="a tiny decoder of the TAEHV form; default: the model's own, if any"
    )
    group.add_argument("--offline", action="store_true", default=None, help="never touch the network")
    group.add_argument("--strict", action="store_true", default=None, help="a fallback is an error, not a note")
    group.add_argument(
        "--allow-pickle", action="store_true", default=None, help="load pickled weights, which can run code"
    )
