"""Kernels of ``glimt_kernels`` beside eager PyTorch, ``torch.compile`` and other libraries; see ``__main__``."""
