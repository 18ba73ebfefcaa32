"""The Trainer's verbs on the command line: fit, validate, test, predict."""
