"""The mutation check itself: its bugs are up to date, cover every kernel, and a sample of them is caught."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from catalogue import MUTATIONS, sample, table
from plant import PACKAGE, ROOT, Mutation, StaleError, Tree, try_out

from glimt_kernels import aot

HERE = Path(__file__).parent


def test_every_bug_still_fits_its_file_and_names_a_test() -> None:
    for mutation in MUTATIONS:
        changed = mutation.applied((PACKAGE / mutation.file).read_text())
        assert changed != (PACKAGE / mutation.file).read_text()
        file, _, test = mutation.test.partition("[")[0].partition("::")
        assert re.search(rf"^def {test}\(", (ROOT / "tests/kernels" / file).read_text(), re.MULTILINE), mutation


def test_every_kernel_has_bugs() -> None:
    counts = Counter(mutation.op for mutation in MUTATIONS)
    assert {build.op for build in aot.builds() if counts[build.op] < 2} == set()
    assert len({(mutation.file, mutation.what) for mutation in MUTATIONS}) == len(MUTATIONS)


def test_a_bug_whose_text_is_gone_is_refused() -> None:
    mutation = Mutation("op", "file", "test", "what", "old", "new")
    assert mutation.applied("an old one") == "an new one"
    for text in ("nothing", "old and old"):
        with pytest.raises(StaleError, match="times, not once"):
            mutation.applied(text)


def test_the_readme_shows_all() -> None:
    assert (HERE / "README.md").read_text().endswith(table())


@pytest.mark.slow
def test_a_sample_is_caught() -> None:
    """One bug of each file of kernels; all of them: make mutations."""
    command = [sys.executable, str(HERE), "--sample", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(sample())} of {len(sample())} caught" in done.stdout


@pytest.mark.slow
def test_what_is_no_bug_survives_and_what_is_broken_is_not_caught(tmp_path: Path) -> None:
    """The harness tells a harmless change, a real bug and broken code apart, and leaves the sources as they were."""
    before = (PACKAGE / "chunk_attention/ring.py").read_text()
    ring_test = "test_chunk_attention.py::test_the_ring_holds_what_a_list_would"
    old = "before_end = min(to_window, self.capacity - first)"
    with closing(Tree(tmp_path)) as tree:
        for test, new, says in (
            ("test_exp.py", f"{old} + 0", "SURVIVED"),
            (ring_test, "before_end = nothing", "BROKEN, no wrong number: NameError"),
            (ring_test, "before_end = __import__('os').abort()", "BROKEN, no wrong number: the process ended"),
        ):
            outcome = try_out(tree, Mutation("chunk_attention", "chunk_attention/ring.py", test, "", old, new))
            assert not outcome.caught
            assert outcome.says.startswith(says)
        assert (tree.package / "chunk_attention/ring.py").read_text() == before
    assert (PACKAGE / "chunk_attention/ring.py").read_text() == before
