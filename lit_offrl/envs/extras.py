"""Packages of the extras ``mujoco`` and ``ogbench``, imported where an environment is made."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from types import ModuleType

from lit_offrl.common.errors import EvaluationError, first_line, install

GL_ADVICE = (
    "unset MUJOCO_GL if no pictures are wanted; for pictures install Debian's libegl1 and set"
    " MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa"
)
# gymnasium-robotics prints, when imported, that its Adroit rewards changed: ours are not its.
_NOTICE = "AdroitHand"


def require(module: str, task: str) -> ModuleType:
    """Import ``module`` (e.g. ``mujoco``) for the environment called ``task`` and return it.

    Raises:
        EvaluationError: it is not installed, or cannot be loaded; the line says what to do.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("_", "-")
        if package == "gymnasium":  # its MuJoCo environments are there; the simulator is not
            package = "mujoco"
        raise EvaluationError(
            f"The environment {task} needs the package {package}: run"
            f" {install('ogbench' if package == 'ogbench' else 'mujoco')}."
        ) from error
    except Exception as error:  # MuJoCo loads the OpenGL that MUJOCO_GL names, with its errors
        raise EvaluationError(
            f"The environment {task} cannot be made: {module} does not load"
            f" ({first_line(error)}): {GL_ADVICE}."
        ) from error
    finally:
        lines = said.getvalue().splitlines(keepends=True)
        sys.stderr.writelines(line for line in lines if not line.startswith(_NOTICE))
