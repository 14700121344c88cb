"""Other papers' one-shot methods, to compare with."""
