"""Check exported policies where only numpy and onnxruntime are, by what ``--keep`` kept.

``python check_exported.py FOLDER`` runs each ``METHOD.onnx`` of the folder on the observations and
noise of its ``METHOD.npz`` and prints the greatest difference from the actions there.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def difference(path: Path) -> float:
    """Return the greatest difference of a policy's actions from those that are kept beside it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kept = np.load(path.with_suffix(".npz"))
    sizes = json.loads(session.get_modelmeta().custom_metadata_map["lit_offrl"])["inputs"]
    apart, environments = 0.0, kept["observations"].shape[1]
    state = np.zeros((environments, sizes.get("state", 0)), np.float32)
    for observations, noise, wanted in zip(
        kept["observations"], kept["noise"], kept["actions"], strict=True
    ):
        given = {"observations": observations, "noise": noise, "state": state}
        actions, *following = session.run(None, {name: given[name] for name in sizes})
        state = following[0] if following else state
        apart = max(apart, float(np.abs(actions - wanted).max()))
    return apart


if __name__ == "__main__":
    torch = "with torch" if importlib.util.find_spec("torch") else "no torch here"
    print(f"numpy {np.__version__}, onnxruntime {onnxruntime.__version__}, {torch}")
    for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
        print(f"{file.stem}: {difference(file):.1e}")
