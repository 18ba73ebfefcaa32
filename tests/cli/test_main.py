"""The command line: help, one-line errors, whose options win, what a run leaves behind."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_offrl.__main__ import COMMANDS, TRAINER_VERBS, main


def only_line(capsys):
    """Return the one line on stderr."""
    errors = capsys.readouterr().err
    assert errors.startswith("lit-offrl: error: ") and errors.count("\n") == 1
    return errors


# ---- help ----------


def test_help_lists_every_verb_without_an_import_that_takes_time():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lit_offrl", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for verb, line in {**TRAINER_VERBS, **COMMANDS}.items():
        assert verb in shown.stdout and line in shown.stdout
    assert not {"torch", "numpy", "lightning"} & {w.strip() for w in shown.stderr.split("|")}


def test_version_and_misspelt_verb(capsys):
    assert main(["--version"]) == 0
    assert main(["fitt"]) == 2
    assert "there is no verb 'fitt'. Did you mean 'fit'?" in only_line(capsys)


def test_a_verbs_help_and_printed_config(lit, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0 and "--checkpoint.every_n_train_steps" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        lit("--seed_everything", "7", "--print_config")
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == "lit_offrl.modules.BCModule"
    assert config["seed_everything"] == 7 and "seed" not in config["model"]["init_args"]


# ---- mistakes ----------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--modle BCModule", "no option '--modle'. Did you mean '--model'?"),
        ("--model BCModul", "no class 'BCModul'. Did you mean 'BCModule'?"),
        ("--model.hiden 3", "BCModule has no option 'hiden'. Did you mean 'hidden'?"),
        (
            "--model IQLModule --model.init_args.normalize min_mx",
            "'min_mx' is none of false, tr",
        ),
        ("--model.init_args.head gauss", "'gauss' is none of gaussian, deterministic. Did you"),
        ("--data.init_args.batchsize 3", "no option 'batchsize'. Did you mean 'batch_size'?"),
        ("--data.init_args.batch_size x", "batch_size: 'x' does not fit: expected int."),
        ("--data.init_args.batch_size 0", "batch_size is 0: give at least 1."),
        ("--data.init_args.view FutureStats", "Did you mean 'FutureStates'?"),
        ("--data.init_args.view FutureStates --data.init_args.view.gamma 2", "gamma is 2"),
        ("--data.init_args.dataset hopper-bullet-medum-v0", "mean 'hopper-bullet-medium-v0'?"),
        ("--trainer.max_step 3", "Did you mean '--trainer.max_steps'?"),
        ("--trainer.max_steps x", "trainer.max_steps: 'x' does not fit: expected int."),
        ("--trainer.accelerator gpux", "invalid accelerator name"),
        (
            "--trainer.check_val_every_n_epoch 1 --trainer.val_check_interval 5000",
            "trainer: `val_check_interval` (5000) must be less than or equal to the number of",
        ),
        ("--trainer.precision bf17", "Did you mean 'bf16'?"),
        ("--checkpoint.keep al", "'al' is none of last, all, best. Did you mean 'all'?"),
        ("--ckpt_path nothing.ckpt", "nothing.ckpt: no such checkpoint"),
        ("--config nothing.yaml", "--config nothing.yaml: there is no file nothing.yaml"),
        ("--trainer.callbacks+=EarlyStoping", "no class 'EarlyStoping'. Did you mean 'EarlySto"),
        ("--trainer nothing.yaml", "error: --trainer nothing.yaml: there is no such file."),
        ("--model nothing.yaml", "error: --model nothing.yaml: there is no such file."),
        ("--model.init_args.seed 3", "give seed_everything alone"),
        ("--seed_everything -1", "seed_everything is -1: give a number in [0, 4294967295]."),
        ("--trainer.val_check_interval 0", "trainer.val_check_interval is 0: give a number above"),
        ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val is -1"),
        ("--trainer.gradient_clip_val x", "gradient_clip_val: 'x' does not fit: expected "),
        ("--model LDCQStage2Module", "--model.init_args.stage1 must be given, by an option or"),
        ("--data.init_args.view AdvantageLabelled", "--data.init_args.view.init_args.labels must"),
        ("--model.class_path os.system", "model: 'os.system' is no OfflineModule. Known: ACDM"),
        ("word", "nothing is known to do with 'word'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(lit, capsys, options, said):
    assert lit(*options.split()) == 2
    assert said in only_line(capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{trainer: {max_step: 4}}", "no option 'trainer.max_step'. Did you mean 'trainer.max_st"),
        ("{modle: {class_path: BCModule}}", "no option 'modle.class_path'. Did you mean 'model'?"),
        ("{model: {class_path: BCModule, init_args: {hiden: [3]}}}", "Did you mean 'hidden'?"),
        ("{model: [", "wrong.yaml: is no YAML: while parsing"),
        ("day: 2024-13-45", "wrong.yaml: is no YAML: month must be in 1..12"),
        ("\x89HDF", "wrong.yaml: is no YAML: 'utf-8' codec can't decode byte 0x89"),
        ("- model", "wrong.yaml: holds no mapping of options"),
        ("# none", "wrong.yaml: is empty"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(lit, capsys, text, said):
    Path("wrong.yaml").write_text(text, encoding="latin-1")
    assert lit("--config", "wrong.yaml") == 2
    assert said in only_line(capsys)


def test_what_must_be_given(capsys):
    assert main(["fit", "--model", "BCModule"]) == 2
    assert "--data must be given" in only_line(capsys)


def test_an_unreachable_tracking_server_is_asked_once_and_is_an_error(lit, capsys, monkeypatch):
    asked = []
    real = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda *a, **k: asked.append(a) or real(*a, **k)
    )
    uri = "http://127.0.0.1:9"
    logger = ("--trainer.logger", "MLflowRun", "--trainer.logger.init_args.tracking_uri", uri)
    assert lit(*logger) == 2
    assert f"The MLflow server {uri} cannot be reached" in only_line(capsys)
    assert len(asked) == 1


# ---- whose options win ----------


@pytest.fixture
def trained(lit):
    """A checkpoint of a deterministic BCModule trained with a learning rate of 0.001."""
    options = ("--model.init_args.head", "deterministic", "--model.init_args.learning_rate", "1e-3")
    assert lit(*options, "--seed_everything", "5", "--checkpoint.dirpath", "run") == 0
    return "run/last.ckpt"


def test_a_checkpoint_gives_the_options_that_are_not_given(trained, capsys):
    assert main(["validate", "--ckpt_path", trained, "--trainer.accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    # A deterministic head logs its squared error as its loss.
    assert "val/loss/actor" in shown and "val/actor/squared_error" in shown


def test_given_options_win_over_the_checkpoints(trained, capsys):
    options = ("--model.init_args.learning_rate", "1e-4", "--trainer.max_steps", "8")
    assert main(["fit", "--ckpt_path", trained, *options]) == 0
    assert "learning_rate: 0.001 → 0.0001" in capsys.readouterr().out
    checkpoint = torch.load(trained, weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-4
    assert checkpoint["hyper_parameters"]["learning_rate"] == 1e-4
    assert checkpoint["hyper_parameters"]["head"] == "deterministic"
    assert checkpoint["hyper_parameters"]["seed"] == 5


def test_options_that_the_weights_do_not_fit_are_refused(trained, capsys):
    assert main(["fit", "--ckpt_path", trained, "--model.init_args.hidden", "[16]"]) == 2
    said = only_line(capsys)
    assert "does not fit this module" in said and "hidden: [8] → [16]" in said


# ---- what a run leaves behind ----------


def test_a_run_has_a_folder_of_its_own_and_its_config_repeats_it(lit, same_state):
    assert lit() == 0
    run = Path("checkpoints/BCModule-pendulum-seed0")
    kept = {path.name for path in run.rglob("*") if path.is_file()}
    kept.remove(".fit.lock")
    files = {"config.yaml", "curves.csv", "finished.json", "last.ckpt", "training_curves.png"}
    assert kept == files
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0
    same_state(run / "last.ckpt", f"{run}-2/last.ckpt")


def test_callbacks_in_a_config_replace_none_that_must_be_there(lit):
    own = "{class_path: EarlyStopping, init_args: {monitor: val/loss/actor}}"
    Path("callbacks.yaml").write_text(f"{{trainer: {{callbacks: [{own}]}}}}")
    assert lit("--config", "callbacks.yaml") == 0
    state = torch.load("checkpoints/BCModule-pendulum-seed0/last.ckpt", weights_only=True)
    assert {key[:6] for key in state["callbacks"]} == {"Curves", "EarlyS", "Evalua"}


def test_a_callback_with_an_enumeration_for_a_default(lit):
    assert lit("--trainer.callbacks", "Timer", "--trainer.max_steps", "2") == 0
    config = yaml.safe_load(next(Path("checkpoints").glob("*/config.yaml")).read_text())
    assert "step" in str(config["trainer"]["callbacks"])


def test_a_later_stage_resumes_without_the_earlier_ones_file(tmp_path):
    """Its record takes the place of a path that has gone or has changed, and of no other."""
    import yaml

    from lit_offrl.cli.checkpoint import ResumeFrom
    from lit_offrl.common.files import file_sha256
    from lit_offrl.modules.base import CHECKPOINT_KEY

    there = tmp_path / "there.ckpt"
    there.write_text("as it was")
    sha256 = file_sha256(there)
    record = {"path": "gone.ckpt", "sha256": sha256, "spec": {"bounds": (1, 2)}}

    def options(stage):
        config = {"model": {"class_path": "Some", "init_args": {"stage1": stage, "prior": "x"}}}
        checkpoint = {
            CHECKPOINT_KEY: {"class_path": "some.Some", "config": yaml.safe_dump(config)},
            "hyper_parameters": {"stage1": record, "prior": "x"},
            "state_dict": {},
            "global_step": 0,
        }
        torch.save(checkpoint, tmp_path / "later.ckpt")
        return ResumeFrom(str(tmp_path / "later.ckpt")).config["model"]["init_args"]

    plain = {"path": "gone.ckpt", "sha256": sha256, "spec": {"bounds": [1, 2]}}
    assert options(str(tmp_path / "gone.ckpt")) == {"stage1": plain, "prior": "x"}
    assert options(str(there))["stage1"] == str(there)
    there.write_text("trained on")
    assert options(str(there))["stage1"] == plain


def test_a_later_stage_goes_on_with_the_earlier_one_that_it_began_with(lit, capsys):
    """Also where that has been trained on since: its latents are found by that file's sha256."""
    small = ("--model.init_args.horizon", "3", "--model.init_args.gru_layers", "1")
    assert lit(*small, "--checkpoint.dirpath", "one", module="LDCQStage1Module") == 0
    first = ("--model.init_args.stage1", "one/last.ckpt")
    assert lit(*first, "--checkpoint.dirpath", "two", module="LDCQStage2Module") == 0
    before = torch.load("two/last.ckpt", weights_only=True)["hyper_parameters"]["stage1"]["sha256"]
    go_on = ("--trainer.max_steps", "8", "--trainer.enable_progress_bar", "false")
    assert main(["fit", "--ckpt_path", "one/last.ckpt", *go_on]) == 0
    assert main(["fit", "--ckpt_path", "two/last.ckpt", *go_on]) == 0
    after = torch.load("two/last.ckpt", weights_only=True)
    assert after["global_step"] == 8
    assert after["hyper_parameters"]["stage1"]["sha256"] == before
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", "two/last.ckpt", *first, *go_on]) == 2
    said = capsys.readouterr().err
    assert "trained on another stage1 than" in said and "leave stage1 out" in said


def test_values_for_a_misspelt_method_are_refused(lit, capsys):
    """They would else be for no method; those for a class of the user's own wait for it."""
    misspelt, others = ("BCModul", "BcModule", "BC"), ("SACModule", "MyBCModule", "Elsewhere")
    for name, code in (*dict.fromkeys(misspelt, 2).items(), *dict.fromkeys(others, 0).items()):
        Path("tuned.yaml").write_text(f"methods: {{{name}: {{trainer.max_steps: 2}}}}\n")
        assert lit("--config", "tuned.yaml", "--trainer.fast_dev_run", "1") == code
        if code:
            assert f"tuned.yaml: methods.{name}: is no method. Did you mean 'BCModule'?" in (
                capsys.readouterr().err
            )
