"""Set lit-offrl up on a machine that has nothing but Python, then run it or test it.

    python3 bootstrap.py demo    set up, then train DVF on the bundled data and score the policy
    python3 bootstrap.py test    set up, then run the tests; `test -m slow` runs the slow ones
    python3 bootstrap.py setup   set up only

Everything goes into ``.venv`` beside this file. Running it again uses what is there. Further
arguments are handed on: to ``lit-offrl fit`` or to pytest. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".lit-offrl-set-up"
DEMO = ["fit", "--config", "configs/dvf_pybullet.yaml", "--config", "configs/quick.yaml"]
NEEDED = (3, 11)
MOST_WORKERS = 8  # of the tests: each takes about a gigabyte


def say(text: str) -> None:
    """Tell what happens next."""
    print(f"[bootstrap] {text}", flush=True)


def stop(text: str) -> None:
    """End with a message and no traceback."""
    sys.exit(f"[bootstrap] error: {text}")


def run(*command: str | Path) -> None:
    """Run a command in this folder and stop if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=HERE)
    if done.returncode:
        stop(f"this command ended with exit code {done.returncode}: {' '.join(map(str, command))}")


def use_right_python() -> None:
    """Go on with a newer interpreter where this one is too old and a newer one is installed."""
    if sys.version_info >= NEEDED:
        return
    for minor in (11, 12, 13):
        other = shutil.which(f"python3.{minor}")
        if other:
            os.execv(other, [other, __file__, *sys.argv[1:]])
    version = ".".join(map(str, sys.version_info[:2]))
    stop(f"Python {version} is too old; install Python 3.11 and call this file with it.")


def state() -> str:
    """A fingerprint of what has to be installed."""
    files = [HERE / "pyproject.toml", HERE / "constraints.txt"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def set_up() -> None:
    """Make the environment, unless it is there already."""
    if STAMP.is_file() and STAMP.read_text() == state():
        say(f"the environment in {VENV.name} is up to date")
        return
    begin = time.monotonic()
    if not PYTHON.exists():
        say(f"making an environment in {VENV.name} with Python {sys.version.split()[0]}")
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], cwd=HERE)
        if made.returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            stop("Python's venv module does not work; on Debian: apt install python3-venv")
    if sys.version_info >= (3, 12):
        say("pybullet has no wheel for this Python: it is compiled, which takes minutes and a C++")
        say("compiler; Python 3.11 is quicker")
    say("installing the tested set of packages (constraints.txt); this takes a few minutes")
    options = ["--quiet", "--no-compile"]  # Python compiles what is imported, a small part, itself
    run(PYTHON, "-m", "pip", "install", *options, "-c", "constraints.txt", "-e", ".[dev]")
    STAMP.write_text(state())
    say(f"installed in {time.monotonic() - begin:.0f} s")


def experiment() -> str:
    """MLflow's id of the experiment that the demo's run is in; 1 in a new store."""
    try:
        with contextlib.closing(sqlite3.connect(HERE / "mlflow.db")) as store:
            found = store.execute("SELECT experiment_id FROM experiments WHERE name = 'lit-offrl'")
            return str(next(found, (1,))[0])
    except sqlite3.Error:  # the run is in another store
        return "1"


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    use_right_python()
    # else every process would compile all that it imports, which takes 20 s
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb not in {"demo", "test", "setup"}:
        sys.exit(__doc__)
    set_up()
    if verb == "demo":
        say(f"running: lit-offrl {' '.join([*DEMO, *rest])}")
        run(PYTHON, "-m", "lit_offrl", *DEMO, *rest)
        say("done; the last table has the policy beside behaviour cloning and the data's own mean")
        say("look at the run with: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")
        page = f"#/experiments/{experiment()}?workflowType=machine_learning"
        say(f"and then http://127.0.0.1:5000/{page}")
    elif verb == "test":
        # A file's tests stay in one process, which makes what they share once; longest files first.
        workers = str(min(os.cpu_count() or 1, MOST_WORKERS))
        options = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
        options += ["-m", "not slow", *rest]
        say(f"running: pytest {' '.join(options)}")
        run(PYTHON, "-m", "pytest", *options)


if __name__ == "__main__":
    main(sys.argv[1:])
