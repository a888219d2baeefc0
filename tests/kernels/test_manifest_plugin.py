"""The TensorRT plugins without TensorRT and without a GPU: driven by a host in its place, over a driver that remembers.

What this cannot show, and no test here does: that TensorRT's own binary interface is the one of its headers, that a
real driver loads a cubin, and what a kernel computes there.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from manifests import HERE, ROOT, SOURCES, Process, example, sanitized, with_cubins, write_folder

from glimt_kernels.manifest.forms import OPS, forms
from glimt_kernels.manifest.launch import choose, launch, offsets, size_of
from glimt_kernels.manifest.spec import Kernel, Manifest
from glimt_kernels.manifest.text import dump
from glimt_kernels.triton_env import ABSENT

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

PLUGIN = sorted((ROOT / "csrc/tensorrt").glob("*.cpp"))
MANIFEST = example()
KERNELS = {kernel.op: kernel for kernel in MANIFEST.kernels}
SIZES: Mapping[str, int] = {"B": 2, "N": 131, "H": 3, "L": 131, "G": 2, "M": 1, "K": 1}
_HOME = TemporaryDirectory(prefix="glimt-fake-driver-")


@cache
def fake_driver() -> Path:
    """The folder of a ``libcuda.so.1`` that remembers what it is asked for."""
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    command += [str(HERE / "manifest/fake_cuda.cpp"), "-o", str(Path(_HOME.name) / "libcuda.so.1")]
    subprocess.run(command, check=True)
    return Path(_HOME.name)


def host(kernels: Path, **around: str) -> Process:
    program = sanitized("host", *SOURCES, *PLUGIN)
    return Process(program, **{"GLIMT_KERNELS": str(kernels), "LD_LIBRARY_PATH": str(fake_driver()), **around})


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("plugin") / "kernels", MANIFEST)


@pytest.fixture
def engine(kernels: Path) -> Iterator[Process]:
    made = host(kernels)
    yield made
    made.close()


def shapes_of(kernel: Kernel, **changes: int) -> list[list[int]]:
    sizes = {**SIZES, **changes}
    return [[axis if isinstance(axis, int) else sizes[axis] for axis in x.axes] for x in kernel.tensors]


def dtypes_of(kernel: Kernel) -> str:
    return ",".join(x.dtype for x in kernel.tensors)


def said(shapes: Sequence[Sequence[int]]) -> str:
    return ";".join(",".join(map(str, shape)) for shape in shapes)


def run(engine: Process, kernel: Kernel, shapes: Sequence[Sequence[int]], address: int = 1 << 20) -> dict[str, str]:
    """One enqueue: each word of the answer with what follows it."""
    addresses = [address * (i + 1) for i in range(len(shapes))]
    sizes = ",".join(str(size_of(a)) for a in kernel.arguments)
    went, says = engine.ask("enqueue", dtypes_of(kernel), said(shapes), ",".join(map(str, addresses)), 4711, sizes)
    assert went, says
    content = re.search(r" content (.*) params ", says)
    says = re.sub(r" content .* params ", " params ", says)
    words = says.split(" ")
    found = {"code": words[0], **dict(zip(words[1::2], words[2::2], strict=True))}
    return found | ({"content": content[1]} if content else {})


def expected(kernel: Kernel, shapes: Sequence[Sequence[int]], value: float, address: int = 1 << 20) -> tuple[int, str]:
    """(grid, parameters without what lies between them)."""
    addresses = [address * (i + 1) for i in range(len(shapes))]
    single = struct.unpack("<f", struct.pack("<f", value))[0]
    asked = launch(kernel, shapes, addresses, dict.fromkeys(kernel.attributes, single))
    places = zip(offsets(kernel.arguments), map(size_of, kernel.arguments), strict=True)
    return asked.grid, b"".join(asked.params[at : at + size] for at, size in places).hex()


def test_there_is_a_creator_for_each_op_with_its_attribute(engine: Process) -> None:
    went, says = engine.ask("creators")
    assert went
    assert says.split() == [f"{op}:{KERNELS[op].attributes[0]}:1:" for op in OPS]


@pytest.mark.parametrize("op", OPS)
def test_an_engine_is_built_and_run(engine: Process, op: str) -> None:
    """All that TensorRT asks, in its order; what is launched is what the reference says, without an allocation."""
    kernel, value = KERNELS[op], 0.0883883461356163
    count, dtypes = len(kernel.inputs), dtypes_of(kernel)
    shapes = shapes_of(kernel)
    assert engine.ask("create", op, f"{kernel.attributes[0]}={value}") == (True, "made")
    assert engine.ask("formats", dtypes) == (True, "y" * len(kernel.tensors))
    types = engine.ask("types", ",".join(x.dtype for x in kernel.inputs), len(kernel.outputs))
    assert types == (True, "".join(f"{x.dtype} " for x in kernel.outputs))
    follows = [[x.axes for x in kernel.inputs].index(out.axes) for out in kernel.outputs]
    assert engine.ask("shapes", count) == (True, "".join(f"{i} " for i in follows))
    unknown = [[axis if isinstance(axis, int) else -1 for axis in x.axes] for x in kernel.tensors]
    assert engine.ask("configure", dtypes, said(unknown)) == (True, "0")
    assert engine.ask("restore") == (True, "made")
    assert engine.ask("clone") == (True, "made")
    assert engine.ask("change", dtypes, said(shapes)) == (True, "0")
    found, (grid, params) = run(engine, kernel, shapes), expected(kernel, shapes, value)
    chosen = choose(kernel, 89)
    assert (found["code"], found["allocations"], found["launches"]) == ("0", "0", "1")
    assert (int(found["grid"]), found["params"]) == (grid, params)
    assert found["content"] == f"{op} {kernel.case} {chosen.target}"
    assert found["entry"] == chosen.entry and found["stream"] == "4711"
    assert (int(found["threads"]), int(found["shared"])) == (32 * chosen.warps, chosen.shared_bytes)
    assert engine.ask("destroy") == (True, "none alive 0")


def test_what_is_not_contiguous_or_of_another_dtype_is_not_offered(engine: Process) -> None:
    assert engine.ask("create", "ada_norm", "eps=1e-6")[0]
    assert engine.ask("formats", "bf16,fp32,bf16,bf16") == (True, "yynn")  # what comes after a wrong one is wrong too
    assert engine.ask("formats", "bf16!,fp32,fp32!,bf16") == (True, "nyny")
    assert engine.ask("formats", "bf16,fp32,fp32,int32") == (True, "yyyn")
    assert engine.ask("formats", "bf16,fp32,bf16") == (True, "nnn")  # a tensor is missing
    went, says = engine.ask("types", "fp16,fp32,fp32", 1)
    assert not went and "no kernel for inputs of these types" in says


def test_what_no_kernel_takes_fails_the_build_and_says_why(engine: Process) -> None:
    kernel = KERNELS["ada_norm"]
    assert engine.ask("create", "ada_norm", "eps=1e-6")[0]
    wide = [[*shape[:-1], 512] for shape in shapes_of(kernel)]
    for verb in ("configure", "change"):
        went, says = engine.ask(verb, dtypes_of(kernel), said(wide))
        assert not went
        assert "glimt plugin ada_norm: no kernel takes such a call: bf16-256: a size is not the one" in says
    went, says = engine.ask("change", dtypes_of(kernel), said(shapes_of(kernel, M=2)))
    assert not went and "a requirement of the kernel does not hold" in says and "[2, 131, 256]" in says
    went, says = engine.ask("enqueue", dtypes_of(kernel), said(shapes_of(kernel)), "0,0,0,0", 0, "8")
    assert not went and "run before it was told its shapes" in says


def test_an_address_that_the_kernel_was_not_compiled_for_is_not_launched(engine: Process) -> None:
    """And the log shows that allocations are counted."""
    kernel = KERNELS["rms_norm"]
    shapes = shapes_of(kernel)
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    assert engine.ask("change", dtypes_of(kernel), said(shapes))[0]
    went, says = engine.ask("enqueue", dtypes_of(kernel), said(shapes), "8,16,32", 0, "8")
    assert not went and "an address is not the multiple" in says


def test_nothing_to_do_launches_nothing(engine: Process) -> None:
    kernel = KERNELS["rms_norm"]
    shapes = shapes_of(kernel, N=0)
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    assert engine.ask("change", dtypes_of(kernel), said(shapes))[0]
    found = run(engine, kernel, shapes)
    assert (found["code"], found["launches"], found["allocations"]) == ("0", "0", "0")


def test_a_cubin_is_loaded_once_for_a_context_and_goes_with_the_last_that_uses_it(engine: Process) -> None:
    kernel = KERNELS["rms_norm"]
    dtypes, shapes = dtypes_of(kernel), shapes_of(kernel)
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    for n in (131, 5, 131):  # other sizes, the same kernel
        assert engine.ask("change", dtypes, said(shapes_of(kernel, N=n)))[0]
        assert engine.ask("clone")[0]
    found = run(engine, kernel, shapes)
    assert (found["loaded"], found["alive"]) == ("1", "1")
    assert engine.ask("context", 2)[0]
    assert engine.ask("change", dtypes, said(shapes))[0]
    found = run(engine, kernel, shapes)
    assert (found["loaded"], found["alive"]) == ("2", "1")
    assert engine.ask("destroy") == (True, "none alive 0")


def test_much_shared_memory_is_asked_for(tmp_path: Path) -> None:
    kernel = KERNELS["attention"]
    much = dataclasses.replace(kernel.cubins[0], shared_bytes=98304)
    folder = write_folder(
        tmp_path / "kernels", Manifest("triton 3.7.1", (dataclasses.replace(kernel, cubins=(much,)),))
    )
    engine, shapes = host(folder), shapes_of(kernel)
    assert engine.ask("create", "attention", "scale=0.125")[0]
    assert engine.ask("change", dtypes_of(kernel), said(shapes))[0]
    found = run(engine, kernel, shapes)
    assert (found["shared"], found["asked"]) == ("98304", "98304")
    engine.close()


def test_an_engine_runs_only_with_the_kernels_it_was_built_with(engine: Process, kernels: Path) -> None:
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    went, says = engine.ask("restore", "0123456789abcdef")
    assert not went
    digest = hashlib.sha256(dump(MANIFEST)).hexdigest()
    assert (
        f"was built with the kernels 0123456789ab, those of {kernels} are {digest[:12]}; build the engine anew" in says
    )


FAILURES = {
    "cuCtxGetCurrent": "cuCtxGetCurrent: invalid argument",
    "cuModuleLoadData": "a cubin could not be loaded: no kernel image is available (209)",
    "cuModuleGetFunction": "a cubin has no _kernel: named symbol not found (500)",
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_driver_refuses_is_an_error_with_its_reason_and_loses_nothing(kernels: Path, name: str) -> None:
    kernel = KERNELS["rms_norm"]
    engine = host(kernels, FAKE_FAILS=name)
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    went, says = engine.ask("change", dtypes_of(kernel), said(shapes_of(kernel)))
    assert not went and FAILURES[name] in says
    assert engine.ask("destroy") == (True, "none alive 0")
    engine.close()


def test_a_launch_that_fails_is_an_error(kernels: Path) -> None:
    kernel = KERNELS["rms_norm"]
    engine, shapes = host(kernels, FAKE_FAILS="cuLaunchKernel"), shapes_of(kernel)
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    assert engine.ask("change", dtypes_of(kernel), said(shapes))[0]
    went, says = engine.ask("enqueue", dtypes_of(kernel), said(shapes), "16,32,48", 0, "8")
    assert not went and says == "glimt plugin rms_norm: invalid argument"
    engine.close()


def test_without_a_driver_or_a_cubin_for_the_chip(kernels: Path, tmp_path: Path) -> None:
    kernel = KERNELS["rms_norm"]
    call = (dtypes_of(kernel), said(shapes_of(kernel)))
    for around, reason in (
        ({"LD_LIBRARY_PATH": str(tmp_path)}, "there is no CUDA driver here"),
        ({"FAKE_CAPABILITY": "75"}, "rms_norm bf16-256 has no cubin for sm_75; it has sm_80, sm_90a"),
        ({"FAKE_CAPABILITY": "121"}, "has no cubin for sm_121"),
    ):
        if "LD_LIBRARY_PATH" in around and shutil.which("nvidia-smi"):
            continue  # there is one
        engine = host(kernels, **around)
        assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
        went, says = engine.ask("change", *call)
        assert not went and reason in says
        engine.close()


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    kernel = KERNELS["rms_norm"]
    whole = write_folder(tmp_path / "tampered", MANIFEST)
    path = whole / kernel.cubins[0].file
    path.write_bytes(path.read_bytes()[::-1])
    engine = host(whole)
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    went, says = engine.ask("change", dtypes_of(kernel), said(shapes_of(kernel)))
    assert not went and f"{path}: its SHA-256 is not that of what was written" in says
    engine.close()
    engine = host(tmp_path / "nowhere")
    went, says = engine.ask("create", "rms_norm", "eps=1e-6")
    assert not went and f"{tmp_path / 'nowhere'}/kernels.manifest: is missing; write the folder anew" in says
    engine.close()
    engine = host(write_folder(tmp_path / "few", Manifest("triton 3.7.1", (kernel,))))
    went, says = engine.ask("create", "attention", "scale=1")
    assert not went and "has no kernel of attention; write one with: python -m glimt_kernels.manifest" in says
    engine.close()


def test_an_attribute_that_is_missing_is_named(engine: Process) -> None:
    went, says = engine.ask("create", "rms_norm", "epsilon=1e-6")
    assert not went and says == "glimt plugin rms_norm: its attribute eps, one float, is missing"


def test_the_folder_beside_the_library_is_found_by_itself(tmp_path: Path) -> None:
    program = shutil.copy(sanitized("host", *SOURCES, *PLUGIN), tmp_path / "host")
    write_folder(tmp_path / "glimt_kernels", MANIFEST)
    engine = Process(Path(program), LD_LIBRARY_PATH=str(fake_driver()))
    assert engine.ask("create", "rms_norm", "eps=1e-6") == (True, "made")
    engine.close()


def test_of_two_kernels_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    both = [with_cubins(f.kernel) for f in forms(["rms_norm"], [(4, 64), (12, 128)], ["bf16", "fp16"])]
    engine = host(write_folder(tmp_path / "kernels", Manifest("triton 3.7.1", tuple(both))))
    assert engine.ask("create", "rms_norm", "eps=1e-6")[0]
    for kernel in both:
        shapes = shapes_of(kernel)
        assert engine.ask("change", dtypes_of(kernel), said(shapes))[0]
        found = run(engine, kernel, shapes)
        assert found["content"] == f"rms_norm {kernel.case} sm_80"
        assert found["params"] == expected(kernel, shapes, 1e-6)[1]
    engine.close()


# ---- the library -----------------------------------------------------------------------------------------------------


def cmake(*arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "cmake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_the_library_is_built_and_offers_two_functions_and_nothing_else(tmp_path: Path, kernels: Path) -> None:
    code, says = cmake("-S", ROOT / "csrc/tensorrt", "-B", tmp_path)
    assert code == 0, says
    assert "against our own declarations: not for TensorRT" in says
    code, says = cmake("--build", tmp_path)
    assert code == 0, says
    library = tmp_path / "libglimt_tensorrt_declared.so"
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    offered = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert {name for name in offered if not name.startswith("_Z")} == {"getCreators", "setLoggerFinder"}
    assert [name for name in offered if "glimt" in name] == []
    count = ctypes.c_int32()
    loaded = ctypes.CDLL(str(library))  # needs neither TensorRT nor a driver
    loaded.getCreators.restype = ctypes.c_void_p
    assert loaded.getCreators(ctypes.byref(count)) and count.value == len(OPS)


def test_with_tensorrts_headers_it_gets_its_name_and_without_them_it_says_so(tmp_path: Path) -> None:
    """These headers are our own declarations: what is shown is which are taken."""
    (tmp_path / "include").mkdir()
    shutil.copy(ROOT / "csrc/tensorrt/declared.h", tmp_path / "include/NvInferRuntime.h")
    given = f"-DGLIMT_TENSORRT_INCLUDE={tmp_path / 'include'}"
    code, says = cmake("-S", ROOT / "csrc/tensorrt", "-B", tmp_path / "build", given)
    assert code == 0 and f"with the headers of {tmp_path / 'include'}" in says, says
    rules = "".join(p.read_text() for p in (tmp_path / "build").rglob("*.make")) + "".join(
        p.read_text() for p in (tmp_path / "build").rglob("build.ninja")
    )
    assert "libglimt_tensorrt.so" in rules + "".join(p.read_text() for p in (tmp_path / "build").rglob("link.txt"))
    assert "GLIMT_TENSORRT_DECLARED" not in rules
    code, says = cmake("-S", ROOT / "csrc/tensorrt", "-B", tmp_path / "other", "-DGLIMT_TENSORRT_INCLUDE=/nowhere")
    assert code != 0 and "GLIMT_TENSORRT_INCLUDE=/nowhere has no NvInferRuntime.h" in says
    around = ("-DGLIMT_TENSORRT=ON", "-DGLIMT_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}")
    code, says = cmake("-S", ROOT, "-B", tmp_path / "whole", *around)
    assert code != 0 and "GLIMT_TENSORRT=ON needs GLIMT_TENSORRT_INCLUDE" in says
    code, says = cmake("-S", ROOT, "-B", tmp_path / "whole", *around, given)
    assert code == 0 and f"with the headers of {tmp_path / 'include'}" in says, says
