"""The kernels beside eager PyTorch, ``torch.compile`` and other libraries, on shapes that models run; see README.md.

``run(Settings(...))`` is what ``glimt bench kernels`` calls; it needs no engine.
"""

from glimt_kernels.bench.compare import Results, run
from glimt_kernels.bench.settings import BenchError, Settings
from glimt_kernels.bench.shapes import SHAPES, Shape
from glimt_kernels.bench.workload import Workload

__all__ = ["SHAPES", "BenchError", "Results", "Settings", "Shape", "Workload", "run"]
