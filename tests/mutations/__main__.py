"""Mutation check: plant the bugs of ``catalogue.py`` one at a time; each must be caught by the test named beside it.

python tests/mutations                 # all; minutes
python tests/mutations --op attention  # those of an op
python tests/mutations --sample        # one of each kernel file, another when the file changes
python tests/mutations --write         # all, and the table into README.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue

from catalogue import MUTATIONS, sample, table
from plant import Mutation, Outcome, StaleError, Tree, try_out

README = Path(__file__).with_name("README.md")
MARK = "<!-- the table below is written by: python tests/mutations --write -->\n"


def outcomes(mutations: Sequence[Mutation], jobs: int) -> Iterator[Outcome]:
    """In the order of ``mutations``; each job has a copy of its own."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder, ExitStack() as closed:
        pool = closed.enter_context(ThreadPoolExecutor(jobs))
        trees: SimpleQueue[Tree] = SimpleQueue()
        for number in range(jobs):
            trees.put(closed.enter_context(closing(Tree(Path(folder) / str(number)))))

        def one(mutation: Mutation) -> Outcome:
            tree = trees.get()
            try:
                return try_out(tree, mutation)
            finally:
                trees.put(tree)

        yield from pool.map(one, mutations)


def control(mutations: Sequence[Mutation]) -> list[str]:
    """Tests that fail without any bug: that they fail with one would prove nothing."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder, closing(Tree(Path(folder) / "0")) as tree:
        found = {test: tree.run(test) for test in dict.fromkeys(mutation.test for mutation in mutations)}
    return [f"{test} fails without a bug: {failure['says']}" for test, failure in found.items() if failure]


def line(outcome: Outcome) -> str:
    mutation = outcome.mutation
    verdict = f"caught by {outcome.test.rpartition('/')[2]}" if outcome.caught else outcome.says
    return f"{mutation.op:20} {mutation.file:27} {outcome.seconds:5.0f} s  {mutation.what}: {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", default=[], choices=sorted({m.op for m in MUTATIONS}))
    parser.add_argument("--what", default="", help="only those whose description holds this")
    parser.add_argument("--sample", action="store_true", help="one of each kernel file, none that needs a compiler")
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    parser.add_argument("--write", action="store_true", help="put the table into README.md, if all were caught")
    args = parser.parse_args()
    chosen = [m for m in (sample() if args.sample else MUTATIONS) if not args.op or m.op in args.op]
    chosen = [m for m in chosen if args.what in m.what]
    if args.write and len(chosen) != len(MUTATIONS):
        parser.error("--write is for all mutations together")
    uncaught = 0
    failing = [] if args.sample else control(chosen)  # beside a sample, these tests run by themselves
    if failing:
        parser.error("; ".join(failing))
    try:
        for outcome in outcomes(chosen, args.jobs):
            uncaught += not outcome.caught
            print(line(outcome), flush=True)
    except StaleError as error:
        parser.error(str(error))
    print(f"{len(chosen) - uncaught} of {len(chosen)} caught")
    if args.write and not uncaught:
        README.write_text(README.read_text().partition(MARK)[0] + MARK + "\n" + table())
    return 1 if uncaught else 0


if __name__ == "__main__":
    sys.exit(main())
