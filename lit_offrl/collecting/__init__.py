"""How datasets are made: one recipe a file, each with ``run`` and ``save``."""
