"""Compile forms for chips and write a folder of cubins with their manifest; read one back, every byte compared.

The folder appears whole or not at all: it is filled under another name, flushed and renamed. Its bytes depend on the
sources, the version of Triton, and what was asked for, and on nothing else: no path or line of a source is in a cubin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glimt_kernels.aot import compile_one, row_of
from glimt_kernels.digest import digest_of
from glimt_kernels.manifest.forms import Form
from glimt_kernels.manifest.launch import size_of
from glimt_kernels.manifest.spec import FILE, Argument, Cubin, Kernel, Manifest, ManifestError
from glimt_kernels.manifest.text import dump, parse
from glimt_kernels.resources import faults
from glimt_kernels.triton_env import ABSENT, INTERPRETED

# What a launch would have to bring besides its arguments.
_EXTRAS = ("global_scratch_size", "profile_scratch_size", "tensordesc_meta", "launch_cooperative_grid", "launch_pdl")
_AGAIN = "write the folder anew with: python -m glimt_kernels.manifest --out DIR"


# ---- compiling -------------------------------------------------------------------------------------------------------


def compiled_form(form: Form, archs: Iterable[int]) -> tuple[Kernel, dict[str, bytes]]:
    """The kernel with its cubins, and the files of these.

    Raises:
        ManifestError: what came out spills, lacks an instruction, or is launched otherwise than the form says.
    """
    made = [_cubin(form, arch) for arch in archs]
    kernel = dataclasses.replace(form.kernel, cubins=tuple(cubin for cubin, _ in made))
    return kernel, {cubin.file: content for cubin, content in made}


def _cubin(form: Form, arch: int) -> tuple[Cubin, bytes]:
    build, kernel = form.build(arch), form.kernel
    with _without_lines():
        compiled = compile_one(build, arch)
    content, metadata, ptx = bytes(compiled.asm["cubin"]), compiled.metadata, str(compiled.asm["ptx"])
    row = row_of((build.op, build.case, arch), content, int(metadata.shared), build.needs.get(arch, ()))
    target = re.search(r"^\.target (sm_[0-9]+a?)", ptx, re.MULTILINE)
    wrong = [*faults(build, row), *_unlaunchable(metadata, ptx, kernel.arguments)]
    if target is None:
        wrong.append("its PTX names no target")
    if wrong or target is None:
        raise ManifestError(f"{build.op} {build.case} for sm_{arch}: {'; '.join(wrong)}")
    return (
        Cubin(
            target[1],
            f"{kernel.op}-{kernel.case}.{target[1]}.cubin",
            len(content),
            hashlib.sha256(content).hexdigest(),
            digest_of(build, arch),
            row.registers,
            row.shared_bytes,
            int(metadata.num_warps),
            str(metadata.name),
        ),
        content,
    )


def _unlaunchable(metadata: Any, ptx: str, arguments: Sequence[Argument]) -> list[str]:
    """What a launch by the rules of a manifest would leave out."""
    wrong = [f"it needs {name}" for name in _EXTRAS if getattr(metadata, name, None)]
    if tuple(getattr(metadata, "cluster_dims", None) or (1, 1, 1)) != (1, 1, 1):
        wrong.append("it is launched in clusters")
    threads = re.search(r"\.reqntid (\d+)", ptx)
    if threads is None or int(threads[1]) != 32 * int(metadata.num_warps):
        wrong.append(
            f"it wants blocks of {threads[1] if threads else 'unknown'} threads, not {metadata.num_warps} warps"
        )
    sizes = [int(bits) // 8 for bits in re.findall(r"^\s*\.param \.[a-z](\d+) ", ptx.partition(")")[0], re.MULTILINE)]
    if sizes != [size_of(argument) for argument in arguments]:
        wrong.append(f"its parameters have {sizes} bytes, the rules say {[size_of(a) for a in arguments]}")
    return wrong


@contextmanager
def _without_lines() -> Iterator[None]:
    """Cubins without the sources' paths and lines: the same bytes wherever the sources lie."""
    from triton import knobs

    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        yield


def build(forms: Sequence[Form], archs: Sequence[int], folder: Path) -> Manifest:
    """Compile ``forms`` for ``archs`` (80, 90, ...) and write ``folder``, which must not exist or be empty.

    Raises:
        ManifestError: without Triton, or where a kernel or the folder will not do; nothing is left of the attempt.
    """
    if ABSENT or INTERPRETED:
        raise ManifestError(ABSENT or "with TRITON_INTERPRET=1 kernels are not those that are compiled: unset it")
    import triton

    with staged(folder) as staging:
        kernels = []
        for form in forms:
            kernel, files = compiled_form(form, archs)
            kernels.append(kernel)
            for name, content in files.items():
                (staging / name).write_bytes(content)
        manifest = Manifest(f"triton {triton.__version__}", tuple(kernels))
        (staging / FILE).write_bytes(dump(manifest))
    return manifest


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``folder`` at the end, unless something is raised.

    Raises:
        ManifestError: ``folder`` is there and not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ManifestError(f"{folder}: is there already and not empty; remove it or name another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".staging-{folder.name}-", dir=folder.parent))
        try:
            yield staging
            for path in sorted(staging.iterdir()):
                _flush(path)
            staging.chmod(0o755)
            _flush(staging)
            staging.rename(folder)
            _flush(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be written: {error.strerror or error}; nothing was kept") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; cubins are compared when they are read.

    Raises:
        ManifestError: it is missing, was cut short or changed, or breaks a rule of the format.
    """
    path = folder / FILE
    try:
        return parse(_bytes(path))
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None


def read_cubin(folder: Path, cubin: Cubin) -> bytes:
    """A cubin's bytes.

    Raises:
        ManifestError: the file is missing, cut short or another than was written.
    """
    path = folder / cubin.file
    try:
        content = _bytes(path)
        if len(content) != cubin.num_bytes:
            raise ManifestError(f"has {len(content)} bytes, {cubin.num_bytes} were written; {_AGAIN}")
        if hashlib.sha256(content).hexdigest() != cubin.sha256:
            raise ManifestError(f"its SHA-256 is not that of what was written; {_AGAIN}")
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"is missing; {_AGAIN}") from None
    except OSError as error:
        raise ManifestError(f"cannot be read: {error.strerror or error}") from None


def verify(folder: Path) -> Manifest:
    """Read all of a folder.

    Raises:
        ManifestError: something in it is not what was written; names every file.
    """
    manifest = read_manifest(folder)
    problems = [problem for k in manifest.kernels for c in k.cubins if (problem := _problem(folder, c))]
    if problems:
        raise ManifestError("\n".join(problems))
    return manifest


def _problem(folder: Path, cubin: Cubin) -> str:
    try:
        read_cubin(folder, cubin)
    except ManifestError as error:
        return str(error)
    return ""
