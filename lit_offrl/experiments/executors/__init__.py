"""Where jobs run: each module has one executor, as ``lit_offrl.experiments.run`` describes it."""
