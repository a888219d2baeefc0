"""Which kernels a manifest can hold, and the rules by which each is launched on contiguous tensors.

A form is an op at one shape and dtype: the ``Build`` that is compiled for a chip, and a :class:`Kernel` without cubins.
Ops, tensors and attributes are those of the nodes of an exported graph. Norms' modulations, tables of angles, masks and
the affine norm's weights are float32, all else is of the form's dtype, as a graph has them.

Attention takes keys and values without TMA: a tensor map is made by the host for each address, which rules of this kind
cannot say. On sm_90 and sm_100 that is another kernel than the one that ``glimt_kernels.attention`` launches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from glimt_kernels.ada_norm import triton as ada
from glimt_kernels.attention import triton as attend
from glimt_kernels.attention.launch import tiles
from glimt_kernels.manifest.expressions import compiled
from glimt_kernels.manifest.spec import Argument, Axis, Kernel, TensorRule
from glimt_kernels.norm import triton as norm
from glimt_kernels.qk_norm_rope import triton as rope
from glimt_kernels.triton_env import ARCHS, Build

# Heads and their width: Wan 1.3B, 5B, 14B, and the bundled model.
SHAPES = ((12, 128), (24, 128), (40, 128), (4, 64))
DTYPES = ("bf16", "fp16")


@dataclass(frozen=True)
class Form:
    """``build(arch)`` is what is compiled for a chip; ``kernel`` how it is launched on any, still without cubins."""

    build: Callable[[int], Build]
    kernel: Kernel


def forms(
    ops: Iterable[str] = (), shapes: Iterable[tuple[int, int]] = SHAPES, dtypes: Iterable[str] = DTYPES
) -> list[Form]:
    """Every form of the chosen ops (none: all), shapes and dtypes, each once.

    Raises:
        ValueError: there is no such op.
    """
    wanted, shapes = set(ops) or set(OPS), list(shapes)
    unknown = wanted - set(OPS)
    if unknown:
        raise ValueError(f"no rules to launch {', '.join(sorted(unknown))}; there are some for {', '.join(OPS)}")
    made = [OPS[op](dtype, *shape) for op in OPS if op in wanted for dtype in dtypes for shape in shapes]
    # Attention is the same for any number of heads.
    return list({(form.kernel.op, form.kernel.case): form for form in made}.values())


# ---- words of the rules ----------------------------------------------------------------------------------------------


def _tensor(name: str, dtype: str, *axes: Axis) -> TensorRule:
    return TensorRule(name, dtype, axes)


def _arguments(build: Build, rules: Mapping[str, str | tuple[str, float]]) -> tuple[Argument, ...]:
    """One for each parameter, in the order of the kernel. A rule is a tensor, an expression, or (attribute, factor)."""
    made = []
    for name in build.kernel.arg_names:
        if name in build.constants:
            continue
        kind, rule = build.signature[name], rules[name]
        if isinstance(rule, tuple):
            made.append(Argument(name, kind, 1, "attr", source=rule[0], factor=rule[1]))
        elif kind.startswith("*"):
            made.append(Argument(name, kind, 16, "tensor", source=rule))
        else:
            made.append(Argument(name, kind, 16 if kind == "i64" else 1, "int", code=compiled(rule)))
    return (*made, *(Argument(f"{what}_scratch", "*i8", 1, "null") for what in ("global", "profile")))


def _retyped(build: Build, case: str, **types: str) -> Build:
    return dataclasses.replace(build, case=case, signature={**build.signature, **types})


# ---- norms -----------------------------------------------------------------------------------------------------------


def _step(samples: str, tokens: str, width: int) -> tuple[str, str]:
    """Elements from sample to sample and token to token; 0 along an axis of length 1, which may be shared."""
    return f"({samples} != 1) * {tokens} * {width}", f"({tokens} != 1) * {width}"


def _ada_norm(dtype: str, heads: int, head_dim: int) -> Form:
    width, case = heads * head_dim, f"{dtype}-{heads * head_dim}"
    build = _retyped(
        ada.build(width, branch=False, eight=None),
        case,
        **dict.fromkeys(("x", "residual", "stream", "out"), f"*{dtype}"),
    )
    rules: dict[str, str | tuple[str, float]] = {
        **{name: name for name in ("x", "scale", "shift", "out")},
        # Never read or written without a branch and eight bits; the launch in Python passes these too.
        "residual": "x",
        "gate": "scale",
        "stream": "out",
        "row_scales": "out",
        "tokens": "N",
        "eps": ("eps", 1.0),
    }
    of = {"x": ("B", "N"), "residual": ("B", "N"), "gate": ("G", "M"), "scale": ("G", "M"), "shift": ("K", "L")}
    for name, lengths in of.items():
        rules[f"{name}_sample"], rules[f"{name}_token"] = _step(*lengths, width)
    rule = Kernel(
        "ada_norm",
        case,
        ("eps",),
        (
            _tensor("x", dtype, "B", "N", width),
            _tensor("scale", "fp32", "G", "M", width),
            _tensor("shift", "fp32", "K", "L", width),
        ),
        (_tensor("out", dtype, "B", "N", width),),
        tuple(map(compiled, ("G == B or G == 1", "M == N or M == 1", "K == B or K == 1", "L == N or L == 1"))),
        compiled("B * N"),
        _arguments(build, rules),
    )
    return Form(lambda _: build, rule)


def _norm(dtype: str, heads: int, head_dim: int, *, centered: bool) -> Form:
    width, case = heads * head_dim, f"{dtype}-{heads * head_dim}"
    weights = "fp32" if centered else dtype
    pointers = {"x": f"*{dtype}", "out": f"*{dtype}", "weight": f"*{weights}", "bias": f"*{weights}"}
    build = _retyped(norm.build(width, centered), case, **pointers)
    names = ("weight", "bias") if centered else ("weight",)
    rule = Kernel(
        build.op,
        case,
        ("eps",),
        (_tensor("x", dtype, "B", "N", width), *(_tensor(name, weights, width) for name in names)),
        (_tensor("out", dtype, "B", "N", width),),
        (),
        compiled("B * N"),
        _arguments(
            build,
            {
                "x": "x",
                "weight": "weight",
                "bias": names[-1],
                "out": "out",
                "x_row": f"{width}",
                "eps": ("eps", 1.0),
            },
        ),
    )
    return Form(lambda _: build, rule)


def _layer_norm(dtype: str, heads: int, head_dim: int) -> Form:
    return _norm(dtype, heads, head_dim, centered=True)


def _rms_norm(dtype: str, heads: int, head_dim: int) -> Form:
    return _norm(dtype, heads, head_dim, centered=False)


def _qk_norm_rope(dtype: str, heads: int, head_dim: int) -> Form:
    width, case = heads * head_dim, f"{dtype}-{heads}x{head_dim}"
    own = dict.fromkeys(("q", "k", "q_out", "k_out", "q_weight", "k_weight"), f"*{dtype}")
    build = _retyped(rope.build(heads, head_dim, rope.WAN), case, order="*fp32", **own)
    axes: tuple[Axis, ...] = ("B", "N", heads, head_dim)
    tensors = ("q", "k", "q_weight", "k_weight", "cos", "sin", "q_out", "k_out")
    steps = {"sample": f"N * {width}", "token": f"{width}", "head": f"{head_dim}"}
    rule = Kernel(
        "qk_norm_rope",
        case,
        ("eps",),
        (
            *(_tensor(name, dtype, *axes) for name in "qk"),
            *(_tensor(name, dtype, width) for name in ("q_weight", "k_weight")),
            *(_tensor(name, "fp32", "N", head_dim // 2) for name in ("cos", "sin")),
        ),
        tuple(_tensor(name, dtype, *axes) for name in ("q_out", "k_out")),
        (),
        compiled("B * N"),
        _arguments(
            build,
            {
                **{name: name for name in tensors},
                **{f"{name}_{axis}": rule for name in "qk" for axis, rule in steps.items()},
                "order": "cos",  # not read: the kernel is compiled without an order
                "tokens": "N",
                "places": "N",
                "table_token": f"{head_dim // 2}",
                "eps": ("eps", 1.0),
            },
        ),
    )
    return Form(lambda _: build, rule)


# ---- attention -------------------------------------------------------------------------------------------------------


def _attention(dtype: str, heads: int, head_dim: int, *, biased: bool = False) -> Form:
    """For any number of heads. The step from mask to mask may be any number: it is not compiled as a multiple of 16."""
    case, op = f"{dtype}-{head_dim}", "attention_bias" if biased else "attention"

    def build(arch: int) -> Build:
        made = attend.build(arch, dtype, head_dim, biased, describable=False, lse=False)
        return dataclasses.replace(made, op=op, case=case, signature={**made.signature, "bias_sample": "i32"})

    rules: dict[str, str | tuple[str, float]] = {
        "q": "q",
        "k": "k",
        "v": "v",
        "out": "out",
        "bias": "bias" if biased else "q",
        "lse": "out",
        "tokens": "N",
        "keys": "L",
        "heads": "H",
        "scale": ("scale", attend.LOG2_E),
        "bias_sample": "L" if biased else "0",
    }
    for name, tokens in (("q", "N"), ("k", "L"), ("v", "L"), ("out", "N")):
        rules |= {f"{name}_sample": f"{tokens} * H * {head_dim}", f"{name}_token": f"H * {head_dim}"}
        rules[f"{name}_head"] = f"{head_dim}"
    q, k, v = (_tensor(name, dtype, "B", n, "H", head_dim) for name, n in (("q", "N"), ("k", "L"), ("v", "L")))

    rule = Kernel(
        op,
        case,
        ("scale",),
        (q, k, v, _tensor("bias", "fp32", "B", "L")) if biased else (q, k, v),
        (dataclasses.replace(q, name="out"),),
        (compiled("L != 0"),),  # without keys the result is zeros, which no kernel of ours writes
        compiled(f"cdiv(N, {_queries(dtype, head_dim)}) * B * H"),
        _arguments(build(ARCHS[0]), rules),
    )
    return Form(build, rule)


def _queries(dtype: str, head_dim: int) -> int:
    """Queries of a block, the same on every chip."""
    found = {tiles(arch, attend.TRITON_DTYPES[dtype], head_dim, describable=False).queries for arch in ARCHS}
    if len(found) > 1:
        raise ValueError(
            f"attention of head_dim {head_dim} has other blocks of queries on other chips ({sorted(found)}), and a "
            "manifest one rule for all: take a head_dim of at most 128"
        )
    return found.pop()


def _attention_bias(dtype: str, heads: int, head_dim: int) -> Form:
    return _attention(dtype, heads, head_dim, biased=True)


OPS: Mapping[str, Callable[[str, int, int], Form]] = {
    "attention": _attention,
    "attention_bias": _attention_bias,
    "qk_norm_rope": _qk_norm_rope,
    "ada_norm": _ada_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
