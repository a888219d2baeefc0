"""One file an op: ``workload(name, shape, dtype, device)``. :data:`OPS` names them."""

OPS = ("ada_norm", "gated_ada_norm", "qk_norm_rope", "rms_norm_silu", "frames_to_uint8", "sparse_attention")
