"""Studies: a checkpoint and data in, plain numbers out; one file a study."""
