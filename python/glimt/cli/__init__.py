"""The ``glimt`` command: the engine's verbs with the same words, and what looks after them.

Results go to standard output, everything else to standard error. ``--json`` prints exactly one JSON object on standard
output, in failure too. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glimt.cli import interruption
from glimt.cli import parser as cli_parser
from glimt.errors import GlimtError

if TYPE_CHECKING:
    import argparse

OK, REFUSED, BROKEN_PIPE = 0, 2, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (``sys.argv[1:]``) and return its exit code; raises only faults in glimt."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in words
    try:
        with interruption.heeded():
            code = _run(words, as_json)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_streams()
        return BROKEN_PIPE
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, interruption.Interrupted) else interruption.Interrupted()
        code = _end(stop.code, "Interrupted", [str(stop)], as_json)
        if arguments is None:  # this process is ours: nothing is left to do, and its threads may take their time
            os._exit(code)
        return code


def _run(arguments: Sequence[str], as_json: bool) -> int:
    try:
        return _command(cli_parser.parse(arguments))
    except SystemExit as error:  # --help, --version
        return error.code if isinstance(error.code, int) else OK
    except cli_parser.UsageError as error:
        return _end(REFUSED, "UsageError", error.problems, as_json, f"see {error.parser.prog} --help")
    except GlimtError as error:
        return _end(REFUSED, type(error).__name__, [_in_options(problem) for problem in error.problems], as_json)
    except BrokenPipeError:
        raise
    except Exception as error:  # the interpreter prints the traceback and exits with 1
        if as_json:
            print_json({"error": {"kind": type(error).__name__, "problems": [f"this is a fault in glimt: {error}"]}})
        raise


def _command(namespace: argparse.Namespace) -> int:
    from importlib import import_module

    module = import_module(f"glimt.cli.{namespace.command}")
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints, it is not the result
        text, result, code = module.run(namespace)
    if namespace.json:
        print_json(result)
    else:
        sys.stdout.write(text + "\n")
    return int(code)


def print_json(value: Any) -> None:
    """``value`` as the one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _end(code: int, kind: str, problems: Sequence[str], as_json: bool, hint: str = "") -> int:
    """Say why it ended, on standard error, and as JSON on standard output where that was asked for."""
    if len(problems) == 1:
        message = problems[0]
    else:
        message = "\n".join([f"{len(problems)} problems:", *(f"  - {problem}" for problem in problems)])
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"glimt: {message}\n" + (f"{hint}\n" if hint else ""))
        if as_json:
            print_json({"error": {"kind": kind, "problems": list(problems)}})
        sys.stdout.flush()
        sys.stderr.flush()
        return code
    _abandon_streams()
    return code


_OPTIONS = {
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_scale_2": "--guidance-2",
    "negative_prompt": "--negative",
    "num_videos_per_prompt": "--variants",
    "memory_budget_bytes": "--memory-budget",
    "height": "--size (height)",
    "width": "--size (width)",
    **{name: f"--{name.replace('_', '-')}" for name in ("fps", "crf", "seed", "solver", "shift", "image")},
    **{name: f"--{name.replace('_', '-')}" for name in ("op", "shapes", "repeats", "out", "provider_file")},
    **{name: f"--{name.replace('_', '-')}" for name in ("last_image", "preview_every", "device", "dtype")},
    **{name: f"--{name}" for name in ("precision", "quality", "backend", "engines")},
    "buckets": "--bucket",
    "targets": "--target",
    **{name: f"--{name.replace('_', '-')}" for name in ("preview", "decoder", "tiny_decoder")},
}


def _in_options(problem: str) -> str:
    """A problem in the words of the command line: ``num_frames: ...`` is ``--frames: ...``, and so are switches."""
    for switch in ("allow_pickle", "offline", "strict"):
        problem = problem.replace(f"{switch}=True", f"--{switch.replace('_', '-')}")
    field, colon, rest = problem.partition(":")
    return f"{_OPTIONS[field]}{colon}{rest}" if colon and field in _OPTIONS else problem


def _abandon_streams() -> None:
    """The reader has gone (``glimt models | head -1``): nothing more is written, also not by the interpreter's end."""
    void = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(void, stream.fileno())
