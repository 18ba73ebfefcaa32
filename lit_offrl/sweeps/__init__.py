"""A grid of methods, datasets and seeds: from a file to cells, and each cell to its record."""
