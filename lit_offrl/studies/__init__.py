"""Studies: a checkpoint and data in, plain numbers of a paper's figure out; one file a study."""
