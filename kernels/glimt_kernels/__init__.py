"""Kernels of glimt, usable and measurable without the engine."""
