"""What a verb does not need is not imported: its help answers at once, its work begins soon."""

import subprocess
import sys

import lit_offrl
from lit_offrl.__main__ import COMMANDS

LIBRARIES = """lightning matplotlib mlflow mujoco optuna pandas pybullet ray scipy sklearn
stable_baselines3 submitit torch torchmetrics""".split()

OF_SOME_RUNS = """mlflow mujoco optuna pandas pybullet ray sklearn stable_baselines3
submitit""".split()  # the others come with Lightning


def libraries_after(code):
    """Run code in a process of its own; return the libraries that it has imported."""
    listed = "print('\\n', *{name.partition('.')[0] for name in sys.modules})"
    code = f"import contextlib, sys\n{code}\n{listed}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return {*LIBRARIES} & {*done.stdout.splitlines()[-1].split()}


def test_the_library_itself_imports_none():
    assert not libraries_after(f"import {lit_offrl.__name__}")


def test_the_help_of_commands_imports_none():
    helps = f"""
from lit_offrl.__main__ import main
for verb in {[*COMMANDS]}:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
    assert f"lit_offrl.commands.{{verb}}" in sys.modules
"""
    assert not libraries_after(helps)


def test_mlflow_and_simulators_are_imported_only_where_a_run_uses_them():
    """By evaluate, which needs no callbacks either, and then by fit."""
    code = """
import lit_offrl.commands.evaluate, lit_offrl.evaluation.evaluate, lit_offrl.modules.checkpoints
assert not any(name.startswith("lit_offrl.callbacks") for name in sys.modules)
assert {"torch", "lightning"} <= {*sys.modules}
import lit_offrl.cli.main
"""
    assert not libraries_after(code) & {*OF_SOME_RUNS}
