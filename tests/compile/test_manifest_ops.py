"""The kernels of a manifest are those of the nodes of an exported graph: names, tensors in their order, attributes."""

from __future__ import annotations

import pytest

from glimt.compile.nodes import NODES
from glimt_kernels.triton_env import ABSENT

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

from glimt_kernels.manifest.forms import OPS, forms


def test_every_node_can_be_a_plugin_and_takes_what_the_kernel_takes() -> None:
    assert set(OPS) == set(NODES)
    for form in forms():
        kernel, node = form.kernel, NODES[form.kernel.op]
        assert tuple(x.name for x in kernel.inputs) == node.inputs, kernel.op
        assert tuple(x.name for x in kernel.outputs) == node.outputs, kernel.op
        assert kernel.attributes == node.attributes, kernel.op
