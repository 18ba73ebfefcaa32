"""Where the page Troubleshooting explains an error: what is printed of the error ends with it."""

from __future__ import annotations

import re

PAGE = "troubleshooting"
# The anchor of each section beside what the errors have in common that it explains.
SECTIONS = {
    "the-file-has-neither-terminals-nor-timeouts": r"has neither 'terminals' nor 'timeouts'",
    "a-column-is-not-finite-or-out-of-bounds": (
        r"column '[^']*' has (NaN|an infinite value|[^ ]+, which is too large)"
    ),
    "the-column-is-missing-that-a-method-needs": r"has no (column '\w+'|rewards), which \w+ needs",
    "the-file-does-not-fit-into-memory": r"does not fit into memory",
    "a-download-fails": r"could not be downloaded from",
    "a-number-is-not-finite": r"is not finite (at|after) step .* the last good checkpoint is",
    "there-is-no-option-of-that-name": r"there is no option '|^\w+ has no option '",
    "another-fit-is-at-work-in-this-folder": r"another fit is at work in this folder",
    "the-checkpoint-does-not-fit": r"does not fit (this module|\w+ of this version)",
    "nothing-says-which-environment-the-dataset-is-from": r"Nothing says which environment",
    "the-environment-has-no-step-limit": r"has no step limit",
    "the-environment-is-of-a-module-that-is-not-imported": r"is of a module that is not imported",
    "compare-refuses-runs": r"not all runs can be compared",
    "pictures-or-videos-cannot-be-drawn": r"MUJOCO_GL=osmesa",
    "the-store-cannot-be-reached-or-written": (
        r"The MLflow (server|store) \S+ cannot be (reached|written)"
    ),
    "there-is-no-such-run-model-or-alias": (
        r"MLflow('s model '[^']*')? at \S+ has no (run|registered model|alias|version) "
    ),
}


def pointer(message: str) -> str:
    """Return the sentence that names the section which explains an error, or ``""``."""
    for anchor, said in SECTIONS.items():
        if re.search(said, message):
            return f" See `lit-offrl docs {PAGE}#{anchor}`."
    return ""
