"""What makes the inversion fast: stacked models, parts that fit in memory, Ray workers."""
