"""Which ops of ``glimt_kernels`` are nodes of an exported graph, and what stands for them where a runtime lacks them.

A node ``glimt::<op>`` is one launch of ours. It carries a local function of the same name and meaning in standard ONNX
ops: a runtime that knows the op runs that, any other the function. Functions are written in ONNX's own text, so that
one holds for every dtype and shape: wide arithmetic is float32, results have the dtype of the first argument.
``linear`` is no node: matrix products with what follows them are what a compiler fuses, times and quantizes best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glimt.errors import CompileError, MissingDependencyError

DOMAIN, DOMAIN_VERSION, OPSET = "glimt", 1, 23
FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class NodeOp:
    """One op as a node: its tensors, its float attributes, and the body of its function in ONNX text."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: str


# Attention of ONNX applies `scale` to q and k alike, TensorRT's none at all: so q is scaled, in its own dtype, and the
# op is told 1. A mask is given a row for each query: ONNX Runtime does not broadcast that axis. A sample all of whose
# keys are masked gives NaN here, zeros in our kernels; no model makes one.
_ATTENTION = """
    factor = Constant <value_float: float = @scale> ()
    factor_q = CastLike (factor, q)
    scaled = Mul (q, factor_q)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (scaled)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v)
"""
_ATTENTION_END = """
    out = Transpose <perm = [0, 2, 1, 3]> (mixed)
"""

# y = x / sqrt(mean(x^2) + eps) * weight over heads and channels, then (a, b) -> (a cos - b sin, a sin + b cos).
_NORM_ROPE = """
    {x}_wide = Cast <to = 1> ({x})
    {x}_flat = Cast <to = 1> ({x}_weight)
    {x}_scale = Reshape ({x}_flat, heads)
    {x}_normed = RMSNormalization <axis = 2, epsilon: float = @eps, stash_type = 1> ({x}_wide, {x}_scale)
    {x}_a = Slice ({x}_normed, zero, end, last, two)
    {x}_b = Slice ({x}_normed, one, end, last, two)
    {x}_ac = Mul ({x}_a, c)
    {x}_bs = Mul ({x}_b, s)
    {x}_as = Mul ({x}_a, s)
    {x}_bc = Mul ({x}_b, c)
    {x}_first = Sub ({x}_ac, {x}_bs)
    {x}_second = Add ({x}_as, {x}_bc)
    {x}_first_ = Unsqueeze ({x}_first, four)
    {x}_second_ = Unsqueeze ({x}_second, four)
    {x}_pairs = Concat <axis = 4> ({x}_first_, {x}_second_)
    {x}_turned = Reshape ({x}_pairs, shape)
    {x}_out = CastLike ({x}_turned, {x})
"""

NODES: Mapping[str, NodeOp] = {
    "attention": NodeOp(
        ("q", "k", "v"),
        ("out",),
        ("scale",),
        _ATTENTION + "mixed = Attention <scale = 1.0> (q_heads, k_heads, v_heads)" + _ATTENTION_END,
    ),
    "attention_bias": NodeOp(
        ("q", "k", "v", "bias"),
        ("out",),
        ("scale",),
        _ATTENTION
        + """
    bias_q = CastLike (bias, q)
    axes = Constant <value_ints = [1, 2]> ()
    row = Unsqueeze (bias_q, axes)
    one = Constant <value_ints = [1]> ()
    tokens = Shape <start = 1, end = 2> (q)
    rows = Concat <axis = 0> (one, one, tokens, one)
    mask = Expand (row, rows)
    mixed = Attention <scale = 1.0> (q_heads, k_heads, v_heads, mask)"""
        + _ATTENTION_END,
    ),
    "qk_norm_rope": NodeOp(
        ("q", "k", "q_weight", "k_weight", "cos", "sin"),
        ("q_out", "k_out"),
        ("eps",),
        """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [3]> ()
    four = Constant <value_ints = [4]> ()
    end = Constant <value_ints = [2147483647]> ()
    shape = Shape (q)
    heads = Shape <start = 2> (q)
    cos_wide = Cast <to = 1> (cos)
    sin_wide = Cast <to = 1> (sin)
    c = Unsqueeze (cos_wide, one)
    s = Unsqueeze (sin_wide, one)
"""
        + _NORM_ROPE.format(x="q")
        + _NORM_ROPE.format(x="k"),
    ),
    "ada_norm": NodeOp(
        ("x", "scale", "shift"),
        ("out",),
        ("eps",),
        """
    wide = Cast <to = 1> (x)
    width = Shape <start = -1> (x)
    ones = ConstantOfShape <value = float[1] {1.0}> (width)
    normed = LayerNormalization <axis = -1, epsilon: float = @eps, stash_type = 1> (wide, ones)
    one = Constant <value_float = 1.0> ()
    scale_wide = Cast <to = 1> (scale)
    shift_wide = Cast <to = 1> (shift)
    factor = Add (scale_wide, one)
    scaled = Mul (normed, factor)
    shifted = Add (scaled, shift_wide)
    out = CastLike (shifted, x)
""",
    ),
    "layer_norm": NodeOp(
        ("x", "weight", "bias"),
        ("out",),
        ("eps",),
        """
    wide = Cast <to = 1> (x)
    weight_wide = Cast <to = 1> (weight)
    bias_wide = Cast <to = 1> (bias)
    normed = LayerNormalization <axis = -1, epsilon: float = @eps, stash_type = 1> (wide, weight_wide, bias_wide)
    out = CastLike (normed, x)
""",
    ),
    "rms_norm": NodeOp(
        ("x", "weight"),
        ("out",),
        ("eps",),
        """
    wide = Cast <to = 1> (x)
    weight_wide = Cast <to = 1> (weight)
    normed = RMSNormalization <axis = -1, epsilon: float = @eps, stash_type = 1> (wide, weight_wide)
    out = CastLike (normed, x)
""",
    ),
}


def function_text(name: str) -> str:
    """The local function of node ``name`` in ONNX text."""
    op = NODES[name]
    attributes = f"<{', '.join(op.attributes)}>" if op.attributes else ""
    head = f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n{name} {attributes} '
    return f"{head}({', '.join(op.inputs)}) => ({', '.join(op.outputs)}) {{{op.body}}}"


def functions(names: set[str]) -> list[Any]:
    """``onnx.FunctionProto`` of each named node, in the order of ``NODES``."""
    onnx = import_onnx()
    return [onnx.parser.parse_function(function_text(name)) for name in NODES if name in names]


def translations() -> dict[Any, Callable[..., Any]]:
    """What ``torch.onnx.export`` puts for each op of ours: ``custom_translation_table``."""
    ops = torch.ops.glimt
    emit = {name: _emitter(name) for name in NODES}

    def attention(q: Any, k: Any, v: Any, scale: float, bias: Any = None) -> Any:
        return (
            emit["attention"](q, k, v, scale=scale)
            if bias is None
            else emit["attention_bias"](q, k, v, bias, scale=scale)
        )

    def qk_norm_rope(
        q: Any, k: Any, q_weight: Any, k_weight: Any, cos: Any, sin: Any, eps: float,
        per_head: bool = False, pairs: str = "interleaved", order: Any = None,
    ) -> Any:  # fmt: skip
        if per_head or pairs != "interleaved" or len(cos.shape) != 2 or order is not None:
            raise CompileError(
                f"qk_norm_rope with per_head={per_head}, pairs={pairs!r}, angles of {len(cos.shape)} axes and "
                f"{'no' if order is None else 'an'} order has no node; there is one for norms over all heads, "
                "neighbouring pairs, angles [N, head_dim / 2] and tokens as they come"
            )
        return emit["qk_norm_rope"](q, k, q_weight, k_weight, cos, sin, eps=eps)

    return {
        ops.attention.default: attention,
        ops.qk_norm_rope.default: qk_norm_rope,
        ops.ada_norm.default: lambda x, scale, shift, eps: emit["ada_norm"](x, scale, shift, eps=eps),
        ops.layer_norm.default: lambda x, weight, bias, eps: emit["layer_norm"](x, weight, bias, eps=eps),
        ops.rms_norm.default: lambda x, weight, eps: emit["rms_norm"](x, weight, eps=eps),
        ops.linear.default: linear,
        torch.ops.aten._upsample_nearest_exact2d.default: enlarge,
    }


def linear(
    x: Any, weight: Any, bias: Any = None, gate: Any = None, residual: Any = None, activation: str = "none"
) -> Any:
    """``residual + gate * activation(x weight^T + bias)`` in standard ops; the gated sum in float32."""
    from onnxscript import opset23 as op

    y = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    if bias is not None:
        y = op.Add(y, bias)
    if activation != "none":
        y = op.Gelu(y, approximate={"gelu_tanh": "tanh", "gelu_erf": "none"}[activation])
    if residual is None:
        return y
    if gate is None:
        return op.Add(residual, y)
    gated = op.Mul(op.Cast(y, to=FLOAT), op.Cast(gate, to=FLOAT))
    return op.CastLike(op.Add(op.Cast(residual, to=FLOAT), gated), residual)


def enlarge(x: Any, size: Any, scales_h: float | None = None, scales_w: float | None = None) -> Any:
    """Nearest pixels at a whole factor: pixel i of the result is pixel i // factor of ``x [B, C, H, W]``."""
    from onnxscript import opset23 as op

    factors = [float(scales_h or 0), float(scales_w or 0)]
    if not all(factor >= 1 and factor.is_integer() for factor in factors):
        raise CompileError(f"pictures are enlarged by whole factors; asked for were {scales_h} and {scales_w}")
    scales = op.Constant(value_floats=[1.0, 1.0, *factors])
    return op.Resize(x, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _emitter(name: str) -> Callable[..., Any]:
    """What adds node ``name`` to the graph being written. Its schema is handed over, not registered globally."""
    from onnxscript import values

    onnx, op = import_onnx(), NODES[name]
    schema, kinds = onnx.defs.OpSchema, ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    result = dict(zip(op.outputs, op.inputs, strict=False))  # an output has the dtype of the input in its place
    return values.Op(
        values.Opset(DOMAIN, DOMAIN_VERSION),
        name,
        schema(
            name,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=[schema.FormalParameter(x, f"T_{x}") for x in op.inputs],
            outputs=[schema.FormalParameter(y, f"T_{result[y]}") for y in op.outputs],
            type_constraints=[(f"T_{x}", kinds, "") for x in op.inputs],
            attributes=[schema.Attribute(a, schema.AttrType.FLOAT) for a in op.attributes],
        ),
    )


def import_onnx() -> Any:
    """The ``onnx`` package, with its parser and checker."""
    try:
        import onnx
        import onnx.checker
        import onnx.defs
        import onnx.parser
        import onnxscript  # noqa: F401 - what writes the nodes
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnx", "export graphs", "pip install 'glimt[onnx]'") from error
    return onnx
