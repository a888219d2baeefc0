"""From models to graphs and plans: what a compiler is given, and under which name what it made is kept.

``export`` writes a graph; ``engine_key`` and ``store`` keep what was built from it. See README.md. Importing this needs
neither ONNX nor a compiler.
"""
