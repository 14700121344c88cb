"""Grids of methods, partitions and seeds over the same uploads, and tables of them.

    python -m fedmitr_app.experiments experiments/digits.toml results/digits
"""
