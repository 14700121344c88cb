"""Grids of methods, partitions and seeds over the same uploads: ``fedmitr experiments``."""
