"""Checkpoints: where they are (hub), what is in them (folder, official), and how their bytes become modules (reader).

Importing this package imports no torch; ``header``, ``digest``, ``folder``, ``official`` and ``hub`` need none either
until a component is loaded.
"""
