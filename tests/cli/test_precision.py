"""``trainer.precision: auto``, on machines with and without units for bf16."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_offrl.cli.main import parse_options
from lit_offrl.cli.precision import by_hardware
from lit_offrl.common.configs import FOLDER
from lit_offrl.experiments.sweep import read_sweep
from lit_offrl.modules.checkpoints import config_of, read_checkpoint


@pytest.fixture
def processor(monkeypatch):
    """Have PyTorch say of the processor which units it has, and whether oneDNN uses them."""

    def says(amx=False, avx=False, onednn=True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)

    return says


@pytest.mark.parametrize(
    ("units", "chosen"),
    [
        ({"amx": True, "avx": True}, ("bf16-mixed", "as the processor has units for bf16 (AMX)")),
        ({"avx": True}, ("bf16-mixed", "as the processor has units for bf16 (AVX-512-bf16)")),
        ({}, ("32-true", "as the processor has no units for bf16 that PyTorch uses")),
        (
            {"amx": True, "onednn": False},
            ("32-true", "as the processor has no units for bf16 that PyTorch uses"),
        ),
    ],
)
def test_what_a_processor_has_decides(processor, monkeypatch, units, chosen):
    processor(**units)
    monkeypatch.setattr("lit_offrl.cli.precision.CUDAAccelerator.is_available", lambda: False)
    monkeypatch.setattr("lit_offrl.cli.precision.MPSAccelerator.is_available", lambda: False)
    assert by_hardware("cpu") == by_hardware("auto") == chosen
    assert by_hardware("mps")[0] == "32-true"


@pytest.mark.parametrize(("bf16", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_what_a_gpu_has_decides(processor, monkeypatch, bf16, chosen):
    processor(amx=not bf16)
    monkeypatch.setattr("lit_offrl.cli.precision.CUDAAccelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)
    for accelerator in ("auto", "gpu", "cuda"):
        assert by_hardware(accelerator)[0] == chosen
    assert by_hardware("cpu")[0] != chosen


def trained(folder):
    """The precision that a run's checkpoint has in its config, and its weights."""
    path = Path(folder) / "last.ckpt"
    checkpoint = read_checkpoint(str(path))
    return config_of(checkpoint, path)["trainer"]["precision"], checkpoint["state_dict"]


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("amx", [True, False])
def test_a_run_keeps_what_was_chosen_wherever_it_goes_on(lit, folder, processor, capsys, amx):
    name, other = ("bf16-mixed", "32-true") if amx else ("32-true", "bf16-mixed")
    overlay = ("--config", "trainer/fast_cpu")
    processor(amx=amx)
    assert lit("--trainer.precision", name, "--checkpoint.dirpath", "plain") == 0
    assert lit("--trainer.precision", other, "--checkpoint.dirpath", "other") == 0
    assert "auto" not in capsys.readouterr().out
    assert lit(*overlay, "--checkpoint.dirpath", "run") == 0
    assert f"lit-offrl: trainer.precision auto: {name}, as the pro" in capsys.readouterr().out
    precision, found = trained("run")
    assert precision == name
    assert not differ(found, trained("plain")[1]) and differ(found, trained("other")[1])

    processor(amx=not amx)
    more = ("--ckpt_path", "run/last.ckpt", "--trainer.max_steps", "7")
    assert lit(*more) == 0  # the checkpoint's own config
    assert trained("run")[0] == name
    assert lit(*more[:-1], "8", "--trainer.precision", "auto") == 0  # as a sweep gives it again
    assert f"auto: {name}, as the checkpoint's run has it" in capsys.readouterr().out
    assert trained("run")[0] == name


def test_files_of_the_trainer_and_sweeps_may_say_it(command, folder, d4rl_file, processor, capsys):
    Path("trainer.yaml").write_text("{accelerator: cpu, precision: auto}")
    grid = {
        "methods": {"bc": {"config": "bc", "options": {"trainer.precision": "auto"}}},
        "datasets": {"mine": {"dataset": str(d4rl_file)}},
        "seeds": [0],
        "evaluate": False,
    }
    Path("grid.yaml").write_text(yaml.safe_dump(grid))
    (cell,) = read_sweep(Path("grid.yaml")).cells
    for amx, name in ((True, "bf16-mixed"), (False, "32-true")):
        processor(amx=amx)
        for argv in (command("--trainer", "trainer.yaml"), cell.target.argv("0")):
            assert parse_options(argv).trainer.precision == name
    assert capsys.readouterr().out == ""  # a sweep's fits say it themselves


def test_the_overlay_says_auto():
    overlay = yaml.safe_load((FOLDER / "trainer" / "fast_cpu.yaml").read_text())
    assert overlay == {"trainer": {"accelerator": "cpu", "devices": 1, "precision": "auto"}}
