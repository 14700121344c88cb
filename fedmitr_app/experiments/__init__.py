"""Grids of methods, partitions and seeds over the same uploads, and tables of them.

    fedmitr experiments experiments/digits.toml results/digits
"""
