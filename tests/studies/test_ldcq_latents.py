"""Latents of both priors beside the data's, where what is right is known."""

import json

import h5py
import numpy as np
import pytest
import torch

from lit_offrl.__main__ import main
from lit_offrl.figures.latents import ends
from lit_offrl.modules import LDCQStage2Module
from lit_offrl.studies.ldcq_latents import PRIORS, compare_latents
from tests.modules.conftest import fit, save, stages  # noqa: F401  fixtures


def modes(seed, number=400):
    """Two narrow modes, at the opposite corners of a cube."""
    rng = np.random.default_rng(seed)
    centres = np.where(rng.random(number) < 0.5, -1.0, 1.0)
    return centres[:, None] + rng.normal(0, 0.05, (number, 3))


def test_a_prior_that_keeps_the_modes_is_told_from_one_that_blurs_them():
    data = modes(0)
    rng = np.random.default_rng(3)
    blurred = data.mean(0) + data.std(0) * rng.normal(size=data.shape)
    found = compare_latents({"data": data, "diffusion": modes(1), "gaussian": blurred})
    assert abs(found["diffusion"]["distance"]) < 0.05 and abs(found["floor"]) < 0.05
    assert found["gaussian"]["distance"] > 0.1
    assert found["diffusion"]["outside"] < 0.12  # 5 % by its definition
    assert found["gaussian"]["outside"] > 0.5
    first = found["data"]["points"][:, 0]
    assert found["data"]["points"].shape == (400, 2) and 0 < found["variance"] <= 1
    assert np.unique(np.sign(first[np.abs(first) > 0.5])).tolist() == [-1, 1]  # both modes show


def test_dimensions_count_alike():
    data, other, far = modes(0), modes(1), modes(2) + np.array([0.0, 0.3, 0.0])
    scale = np.array([1.0, 1000.0, 0.001])
    parts = {"data": data, "diffusion": other, "gaussian": far}
    plain = compare_latents(parts)
    scaled = compare_latents({name: part * scale for name, part in parts.items()})
    for name in ("diffusion", "gaussian"):
        assert scaled[name]["distance"] == pytest.approx(plain[name]["distance"], abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_positions_of_one_number_lie_on_a_line():
    place = {name: {"ends": [[-1.0], [3.0]], "ends_distance": 0.1} for name in ("data", *PRIORS)}
    figure = ends({"rows": [{"horizon": 1, "start": [0.5], "ends_floor": 0.0, **place}]})
    for axis in figure.axes:
        assert axis.collections[0].get_offsets().tolist() == [[0, -1], [0, 3]]
        assert axis.lines[0].get_xydata().tolist() == [[0, 0.5]]
    figure.canvas.draw()


def test_latents_of_one_number_are_refused(stages, save, tmp_path, capsys):  # noqa: F811
    module = LDCQStage2Module(2, 1, stage1=str(stages(latent_dim=1)), width=8)
    path, data = save(module, 1), min(tmp_path.glob("data*.hdf5"))
    words = ["--ckpt_path", str(path), "--data", str(data), "--no-mlflow"]
    assert main(["figures", "ldcq-latents", *words]) == 2
    assert "has latents of 1 number, and a plane needs 2" in capsys.readouterr().err


def test_a_prior_that_cannot_answer_is_refused(stages, tmp_path, capsys):  # noqa: F811
    aimed = stages(2, goals="hindsight", drop_probability=0.0)
    data = min(tmp_path.glob("data*.hdf5"))
    words = ["--data", str(data), "--no-mlflow", "--ckpt_path"]
    assert main(["figures", "ldcq-latents", *words, str(aimed)]) == 2
    assert f"{aimed}: this prior was trained with drop_probability 0" in capsys.readouterr().err
    plain = stages(2)
    checkpoint = torch.load(plain, weights_only=True)
    checkpoint["lit_offrl"]["spec"]["env_id"] = "lit_offrl/maze2d-umaze-v1"
    torch.save(checkpoint, plain)
    with h5py.File(data, "r+") as file:
        file.attrs["env_id"] = "lit_offrl/mountain-car-v0"
    assert main(["figures", "ldcq-latents", *words, str(plain)]) == 2
    assert "was trained on data of lit_offrl/maze2d-umaze-v1, and " in capsys.readouterr().err


def test_both_figures_of_a_checkpoint(stages, tmp_path, capsys):  # noqa: F811
    path = stages(2)
    data = min(tmp_path.glob("data*.hdf5"))
    words = ["--ckpt_path", str(path), "--data", str(data), "--output", str(tmp_path / "out")]
    for name in ("ldcq-latents", "ldcq-ends"):
        options = [*words, "--samples", "25", "--at", "0", "0", "--no-mlflow"]
        assert main(["figures", name, *options]) == 0
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        (row,) = found["numbers"]["rows"]
        assert row["horizon"] == 3 and row["snippets"] == 25
        assert all(np.shape(row[source]["points"]) == (25, 2) for source in ("data", *PRIORS))
        assert 0 <= found["metrics"]["gaussian_outside"] <= 1
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["figures", "ldcq-latents", *words, "--at", "1"]) != 0
    assert "--at: 1 numbers are given; positions have 2." in capsys.readouterr().err
