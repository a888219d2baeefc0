"""glimt's little world: scenes, their renderer, captions and judge, and the model trained on them.

Importing this package imports nothing heavy; the modules below it do.
"""
