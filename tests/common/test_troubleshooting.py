"""Errors end with the section of Troubleshooting that explains them, and it quotes what is said."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from mlflow.store.entities import PagedList
from pymdownx.slugs import slugify

from lit_offrl.__main__ import dispatch, main
from lit_offrl.callbacks.finite import FiniteGuard
from lit_offrl.cli.checkpoint import ResumeFrom
from lit_offrl.cli.folders import LOCK, Folders
from lit_offrl.commands.docs import section
from lit_offrl.common.errors import LitOffRLError
from lit_offrl.common.troubleshooting import PAGE, SECTIONS, pointer
from lit_offrl.datamodules import D4RLDataModule
from lit_offrl.datasets.catalog import CATALOG
from lit_offrl.datasets.columns import clean_column, need_ends
from lit_offrl.datasets.download import download
from lit_offrl.datasets.hdf5_limits import require_memory
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.envs import find_spec, require_step_limit
from lit_offrl.evaluation.evaluate import environment_of
from lit_offrl.evaluation.protocol import Difference, refuse
from lit_offrl.evaluation.video import VideoWriter
from lit_offrl.experiments.process import folder_lock
from lit_offrl.modules import IQLModule
from lit_offrl.tracking.references import registered_model
from lit_offrl.tracking.store import require_store

TEXT = (Path(__file__).parents[2] / "docs" / f"{PAGE}.md").read_text()


def sections():
    """The text of each section by the anchor that the site gives it."""
    _, *parts = re.split(r"^### (.+)$", TEXT, flags=re.MULTILINE)
    anchor = slugify(case="lower")
    return {anchor(title, "-"): text for title, text in zip(parts[::2], parts[1::2], strict=True)}


def quote(text):
    """What a section begins by quoting of an error, as a pattern: … stands for anything."""
    found = re.match(r"\s*`([^`]+)`", text)
    return found and re.escape(found[1]).replace("…", ".+")


SPEC = DatasetSpec("rows", 3, 1, columns=("observations", "actions"), origin="rows.hdf5")


class Blind(gymnasium.Env):
    """Cannot draw."""

    def render(self):
        raise RuntimeError("no context")


def lacks_rewards():
    data = D4RLDataModule("hopper-bullet-bundled")
    data.spec = SPEC
    data.trainer = SimpleNamespace(lightning_module=IQLModule(3, 1, [-1.0], [1.0]))
    data.setup("fit")


def not_finite():
    trainer = SimpleNamespace(global_step=7, world_size=1, checkpoint_callbacks=[], ckpt_path=None)
    trainer.precision_plugin = None
    module = SimpleNamespace(latest_losses={"critic": torch.tensor(np.nan)})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    FiniteGuard().on_before_optimizer_step(trainer, module, optimizer)


def other_fit():
    with folder_lock(Path("run"), LOCK):
        Folders().hold(Path("run"))


def other_shape():
    checkpoint = object.__new__(ResumeFrom)
    checkpoint.path, checkpoint.config, checkpoint._shapes = "last.ckpt", {}, {"weight": (2, 2)}
    checkpoint.require_fit(torch.nn.Linear(3, 2, bias=False), {})


def unlike():
    runs = (SimpleNamespace(source="a.json", method="IQL"),)
    refuse([Difference("hopper", runs, "20 episodes instead of 100")])


def no_model():
    client = SimpleNamespace(search_registered_models=lambda **_: PagedList([], None))
    registered_model(client, "sqlite:///mlflow.db", "walker")


ENTRY = replace(next(iter(CATALOG.values())), url="file:///rows.hdf5")
ERRORS = {
    "the-file-has-neither-terminals-nor-timeouts": lambda: need_ends((), "rows.hdf5"),
    "a-column-is-not-finite-or-out-of-bounds": lambda: clean_column(
        "observations", np.full((2, 3), np.nan), 2, "rows.hdf5"
    ),
    "the-column-is-missing-that-a-method-needs": lacks_rewards,
    "the-file-does-not-fit-into-memory": lambda: require_memory({"rewards": 2**60}, "rows.hdf5"),
    "a-download-fails": lambda: download(ENTRY, "data", progress=False),
    "a-number-is-not-finite": not_finite,
    "there-is-no-option-of-that-name": lambda: dispatch(["compare", "--betaa", "3"]),
    "another-fit-is-at-work-in-this-folder": other_fit,
    "the-checkpoint-does-not-fit": other_shape,
    "nothing-says-which-environment-the-dataset-is-from": lambda: environment_of(SPEC, None, None),
    "the-environment-has-no-step-limit": lambda: require_step_limit(Blind(), "Blind-v0"),
    "the-environment-is-of-a-module-that-is-not-imported": lambda: find_spec("not_here:Reach-v0"),
    "compare-refuses-runs": unlike,
    "pictures-or-videos-cannot-be-drawn": lambda: VideoWriter("film.mp4", Blind()),
    "the-store-cannot-be-reached-or-written": lambda: require_store("http://127.0.0.1:9"),
    "there-is-no-such-run-model-or-alias": no_model,
}


def test_each_section_that_quotes_an_error_is_pointed_to_and_no_other():
    assert {anchor for anchor, text in sections().items() if quote(text)} == set(SECTIONS)
    assert set(ERRORS) == set(SECTIONS)


@pytest.mark.parametrize("anchor", ERRORS)
def test_an_error_ends_with_its_section_which_quotes_it(anchor, folder):
    with pytest.raises(LitOffRLError) as caught:
        ERRORS[anchor]()
    said = " ".join(str(caught.value).split())
    assert pointer(said) == f" See `lit-offrl docs {PAGE}#{anchor}`."
    text = section(f"{PAGE}#{anchor}").partition("\n")[2]
    assert text and sections()[anchor].startswith(f"\n{text}")
    assert re.search(quote(sections()[anchor]), said), said


def test_the_line_on_stderr_ends_with_it(capsys):
    assert main(["compare", "--betaa", "3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lit-offrl: error: there is no option '--betaa'.")
    assert said.endswith(" See `lit-offrl docs troubleshooting#there-is-no-option-of-that-name`.\n")
    assert said.count("\n") == 1


def test_an_error_that_no_section_explains_points_nowhere(capsys):
    assert pointer("rows.hdf5: there is no such file.") == ""
    assert main(["fitt"]) == 2
    assert PAGE not in capsys.readouterr().err
