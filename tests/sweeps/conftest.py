"""A stand-in for the two commands, which needs no imports and does as its dataset is named."""

import json
import sys

import pytest
import yaml

from lit_offrl.jobs import children

STUB = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
def value(name): return words[words.index(name) + 1] if name in words else None
with open("calls", "a") as file:
    file.write(json.dumps([words, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
if words[0] == "evaluate":
    steps = float(Path(value("--ckpt_path")).read_text())
    output = Path(value("--output"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"scores": [steps, steps + 1], "returns": [0, 0]}))
    sys.exit()
last = Path(value("--checkpoint.dirpath")) / "last.ckpt"
begun = float(Path(value("--ckpt_path")).read_text()) if "--ckpt_path" in words else 0
data = value("--data.init_args.dataset")
last.parent.mkdir(parents=True, exist_ok=True)
def save(number=0, frame=None):
    last.write_text(str(begun + 5))
    if number: sys.exit(128 + number)
if data == "fails" and not begun:
    save()
    print("a line")
    sys.exit("lit-offrl: error: no such thing.")
if data == "waits" and not begun:
    signal.signal(signal.SIGTERM, save)
    Path("waiting").touch()
    time.sleep(60)
if data == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
save()
"""


@pytest.fixture
def stub(folder, monkeypatch):
    """The commands are the stand-in's; returns what was called, with the GPUs of each."""
    (folder / "stub.py").write_text(STUB)
    monkeypatch.setattr(children, "PROGRAM", (sys.executable, "-S", str(folder / "stub.py")))

    def calls():
        path = folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return calls


@pytest.fixture
def sweep(folder, monkeypatch):
    """Run `lit-offrl sweep` on a file of two methods and given datasets; returns the exit code."""
    from lit_offrl.__main__ import main
    from lit_offrl.jobs import follow

    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    (folder / "a.yaml").write_text("model: {width: 1}\n")

    def run(*options, datasets=("plain",), seeds=(0, 1), **keys):
        content = {"methods": {"m": {"config": "a.yaml"}}, "datasets": list(datasets)}
        content |= {"name": "grid", "seeds": list(seeds), **keys}
        (folder / "grid.yaml").write_text(yaml.safe_dump(content))
        return main(["sweep", "--config", "grid.yaml", *options])

    return run
