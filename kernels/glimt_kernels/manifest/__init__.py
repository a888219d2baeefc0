"""Kernels compiled ahead of time for users without Python: cubins in a folder, and one file that says how to launch.

    python -m glimt_kernels.manifest --out DIR --shape 12x128 --arch 89 --arch 120

``forms.py`` says which kernels there are and by which rules they are launched, ``build.py`` compiles and writes
them, ``text.py`` is the format, ``launch.py`` the rules in Python. ``csrc/manifest`` is the same reader in C++; the
tests hold one to the other and both to what ``<op>/triton.py`` launches. See README.md.
"""
