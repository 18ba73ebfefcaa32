"""Checkpoints that nobody should trust: legal files whose config names code, folders and servers.

Each of them would leave a canary, a file or a request, if what it names were run or used.
"""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import load_module, mlflow_runs, read_checkpoint

TINY = {"width": 8, "blocks": 1, "heads": 2, "latents": 2, "hidden": [8], "warmup_steps": 2}
TINY |= {"diffusion_steps": 4, "sampling_steps": 2, "num_samples": 2}
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
VERBS = {
    "fit": ["--trainer.max_steps", "2", "--evaluation.episodes", "0", *QUIET],
    "validate": QUIET,
    "test": QUIET,
    "predict": QUIET,
    "ope": ["--policies", "0", "--fqe_steps", "2", "--starts", "2", "--samples", "2"],
    "figures": ["--output", "figures"],
}


@pytest.fixture(scope="module")
def trained(d4rl_file, tmp_path_factory):
    """A checkpoint of a tiny DVF, of which nothing is hostile yet."""
    folder = tmp_path_factory.mktemp("trained")
    config = {
        "model": {"class_path": "DVFModule", "init_args": TINY},
        "data": {"class_path": "D4RLDataModule", "init_args": {"dataset": str(d4rl_file)}},
        "trainer": {"accelerator": "cpu", "max_steps": 1, "logger": False},
        "evaluation": {"episodes": 0},
        "checkpoint": {"dirpath": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "config.yaml"), *QUIET]) == 0
    drawn = folder / "run" / "figures" / "training_curves.png"
    assert drawn.stat().st_size > 10_000  # in full, unlike by the other fits
    return folder / "run" / "last.ckpt"


@pytest.fixture
def changed(trained, folder, undrawn):
    """Write the checkpoint with its config, or another part of it, changed."""

    def write(change=None, text=None, **ours):
        checkpoint = torch.load(trained, weights_only=True)
        part = checkpoint[CHECKPOINT_KEY]
        if change is not None:
            config = yaml.safe_load(part["config"])
            change(config)
            text = yaml.safe_dump(config)
        if text is not None:
            part["config"] = text
        part |= ours
        torch.save(checkpoint, folder / "hostile.ckpt")
        return "hostile.ckpt"

    return write


@pytest.fixture
def traps(folder, monkeypatch):
    """Code that would leave a file named canary: beside the checkpoint, and on Python's path."""
    monkeypatch.setattr(sys, "path", ["", str(folder), *sys.path])
    trap = "from pathlib import Path\nPath('canary').touch()\n"
    (folder / "evil_canary.py").write_text(trap + "class Evil:\n    pass\n")
    (folder / "hub").mkdir()
    (folder / "hub" / "hubconf.py").write_text(trap + "def evil(**options):\n    return 5\n")
    (folder / "evil.yaml").write_text("{class_path: evil_canary.Evil}")
    # a distribution that lies in the working directory is not an installed one
    (folder / "evil_canary-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: evil-canary\nVersion: 1.0\nRequires-Dist: lit-offrl\n"
    (folder / "evil_canary-1.0.dist-info" / "METADATA").write_text(metadata)
    (folder / "evil_canary-1.0.dist-info" / "RECORD").write_text("evil_canary.py,,\n")
    yield folder
    assert not (folder / "canary").exists() and "evil_canary" not in sys.modules


@pytest.fixture
def server():
    """A server that counts the requests that it gets."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(500)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()
        thread.join()


def run(verb, path, *more):
    name = ["value-against-return"] if verb == "figures" else []
    return main([verb, *name, "--ckpt_path", path, *VERBS[verb], *more])


def put(section, value, *way):
    """Make a change of a config that puts a value somewhere in a section."""

    def change(config):
        place = config
        for key in (section, *way[:-1]):
            place = place[key]
        if way:
            place[way[-1]] = value
        else:
            config[section] = value

    return change


HUB = {"repo_or_dir": "hub", "model": "evil", "source": "local"}
EVIL = {"class_path": "evil_canary.Evil"}
TOUCH = {"args": ["touch", "canary"]}
SUBPROCESS = {"class_path": "subprocess.Popen", "init_args": TOUCH}
DATA = {
    "torch.hub": put("data", {"class_path": "torch.hub.load", "init_args": HUB}),
    "subprocess": put("data", {"class_path": "subprocess.run", "init_args": TOUCH}),
    "os.system": put("data", {"class_path": "os.system", "init_args": {"command": "touch canary"}}),
    "builtins": put("data", {"class_path": "builtins.exec", "init_args": {}}),
    "another class": put("data", {"class_path": "lit_offrl.modules.BCModule", "init_args": {}}),
    "the working directory": put("data", EVIL),
    "a view by name": put("data", "evil_canary.Evil", "init_args", "view"),
    "a view": put("data", EVIL, "init_args", "view"),
    "a view's options": put(
        "data",
        {"class_path": "lit_offrl.datasets.views.Snippets", "init_args": {"horizon": SUBPROCESS}},
        "init_args",
        "view",
    ),
    "a plain option": put("data", SUBPROCESS, "init_args", "batch_size"),
    "a list": put("data", [SUBPROCESS], "init_args", "hold_out_policies"),
    "further options": put("data", {"a": EVIL}, "dict_kwargs"),
}
STAGED = "lit_offrl.modules.LDCQStage2Module"
MODEL = {
    "the working directory": put("model", EVIL),
    "torch.hub": put("model", {"class_path": "torch.hub.load", "init_args": HUB}),
    "an earlier stage": put("model", {"class_path": STAGED, "init_args": {"stage1": EVIL}}),
    "below a record": put(
        "model",
        {
            "class_path": STAGED,
            "init_args": {"stage1": {"hyper_parameters": {"critic": SUBPROCESS}}},
        },
    ),
    "a text that spells one": put(
        "model", {"class_path": STAGED, "init_args": {"stage1": "{a: {class_path: evil_canary.E}}"}}
    ),
    "a file that holds one": put(
        "model", {"class_path": STAGED, "init_args": {"stage1": "evil.yaml"}}
    ),
}


def one_line(capsys):
    said = capsys.readouterr().err
    assert said.startswith("lit-offrl: error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("change", DATA.values(), ids=DATA)
@pytest.mark.parametrize("verb", ["fit", "predict", "ope"])
def test_data_of_a_class_that_is_none_of_ours_are_refused(verb, change, changed, traps, capsys):
    assert run(verb, changed(change)) == 2
    assert "hostile.ckpt: data" in one_line(capsys)


@pytest.mark.parametrize("change", MODEL.values(), ids=MODEL)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_method_of_a_class_that_is_none_of_ours_is_refused(verb, change, changed, traps, capsys):
    assert run(verb, changed(change)) == 2
    assert "hostile.ckpt: model" in one_line(capsys)


@pytest.mark.parametrize("verb", ["evaluate", "ope", "figures"])
def test_a_checkpoint_of_a_file_beside_it_is_refused_by_name(verb, changed, traps, capsys):
    path = changed(class_path="evil_canary.Evil")
    code = main(["evaluate", "--ckpt_path", path]) if verb == "evaluate" else run(verb, path)
    assert code == 2
    said = one_line(capsys)
    assert "evil_canary.Evil cannot be imported" in said and "--import evil_canary" in said


def test_objects_of_the_trainer_are_left_out_by_name(changed, traps, capsys):
    callbacks = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": "canary"},
        },
        {
            "class_path": "lightning.pytorch.callbacks.LambdaCallback",
            "init_args": {"on_fit_start": "os.system"},
        },
        EVIL,
    ]
    profiler = {
        "class_path": "lightning.pytorch.profilers.SimpleProfiler",
        "init_args": {"dirpath": "canary", "filename": "x"},
    }
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "canary"}}
    mlflow = {
        "class_path": "lightning.pytorch.loggers.MLFlowLogger",
        "init_args": {"tracking_uri": "file:canary"},
    }

    def change(config):
        config["trainer"] |= {"callbacks": callbacks, "profiler": profiler, "plugins": [EVIL]}
        config["trainer"] |= {"logger": [csv, mlflow], "default_root_dir": "canary"}
        config["trainer"] |= {"strategy": "evil_canary.Evil", "accelerator": "evil.yaml"}
        config["checkpoint"]["every_n_train_steps"] = EVIL
        config["data"]["init_args"] |= {"data_dir": "canary", "cache_dir": "canary"}

    path = changed(change)
    code = run("fit", path, "--trainer.logger", "false", "--trainer.accelerator", "cpu")
    said = capsys.readouterr()
    assert code == 0, said.err
    assert torch.load("last.ckpt", weights_only=True)["global_step"] == 2
    for option, what in {
        "trainer.callbacks": "ModelCheckpoint, LambdaCallback, Evil",
        "trainer.profiler": "SimpleProfiler",
        "trainer.plugins": "Evil",
        "trainer.strategy": "evil_canary.Evil",
        "trainer.default_root_dir": "canary",
        "checkpoint.every_n_train_steps": "Evil",
        "data.init_args.data_dir": "canary",
        "data.init_args.cache_dir": "canary",
    }.items():
        assert f"the checkpoint's {option} ({what}) is not taken over: give it again" in said.out
    for given in ("logger", "accelerator"):  # on the command line
        assert f"trainer.{given} (" not in said.out


def test_what_the_command_names_again_is_used(changed, capsys):
    stop = {
        "class_path": "lightning.pytorch.callbacks.Timer",
        "init_args": {"duration": "01:00:00:00"},
    }
    path = changed(put("trainer", [stop], "callbacks"))
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    assert run("fit", path, "--config", "mine.yaml") == 0
    assert "not taken over" not in capsys.readouterr().out
    assert "Timer" in torch.load("last.ckpt", weights_only=True)["callbacks"]


@pytest.mark.parametrize("verb", ["fit", "evaluate", "figures"])
def test_a_server_that_only_the_checkpoint_names_is_not_asked(
    verb, changed, server, capsys, monkeypatch
):
    address, asked = server
    logger = {
        "class_path": "lit_offrl.callbacks.MLflowRun",
        "init_args": {"tracking_uri": address, "experiment_name": "mine"},
    }
    origin = {"run_id": "0" * 32, "tracking_uri": address}
    path = changed(put("trainer", logger, "logger"), mlflow=origin)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////no/such/folder/mlflow.db")
    if verb == "fit":
        assert run(verb, path) == 2
        said = capsys.readouterr()
        option = "trainer.logger.init_args.tracking_uri"
        assert f"the checkpoint's {option} ({address}) is not taken over" in said.out
        assert "The MLflow store /no/such/folder/mlflow.db cannot be written" in said.err
    else:
        words = ["evaluate", "--ckpt_path", path, "--env", "Pendulum-v1", "--episodes", "1"]
        words += ["--max_episode_steps", "2", "--mlflow"]
        assert (run(verb, path) if verb == "figures" else main(words)) == int(verb == "evaluate")
        said = capsys.readouterr().err
        assert f"the run was in {address}: give it as --tracking_uri" in said
    assert not asked
    if verb == "figures":  # unless the user's command names it
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert run(verb, path, "--tracking_uri", address) == 0
        assert asked


def test_a_database_that_only_the_checkpoint_names_is_not_made_or_opened(changed, capsys):
    Path("other.db").write_bytes(b"")
    for name in ("new.db", "other.db"):
        uri = f"sqlite:///{Path(name).resolve()}"
        path = changed(mlflow={"run_id": "0" * 32, "tracking_uri": uri})
        assert run("figures", path) == 0
        assert f"the run was in {uri}: give it as --tracking_uri" in capsys.readouterr().err
    assert Path("other.db").read_bytes() == b"" and not Path("new.db").exists()


@pytest.mark.parametrize("origin", [5, [], {}, {"run_id": 5}, {"run_id": "x", "beside": 5}])
def test_a_run_of_mlflow_that_is_none_is_as_no_run(origin, changed):
    assert main(["figures", "value-against-return", "--ckpt_path", changed(mlflow=origin)]) == 0
    assert run("fit", "hostile.ckpt", "--trainer.logger", "false") == 0


CONFIGS = {
    "no YAML": "data: [",
    "no date": "a: 2001-99-99",
    "tabs": "\tdata: 5",
    "a number": "5",
    "a list": "[model, data]",
    "a text": "data",
    "bytes": b"data: {}",
    "a mapping": {"data": 5},
    "a tag": "data: !!python/object/apply:os.system ['touch canary']",
    "data a number": "data: 5",
    "data a list": "data: [1]",
    "data a name": "data: D4RLDataModule",
    "data without a class": "data: {init_args: {dataset: x}}",
    "a class that is a number": "data: {class_path: 5}",
    "a class that is nothing": "data: {class_path: null, init_args: null}",
    "options that are a number": "data: {class_path: lit_offrl.datamodules.D4RLDataModule, "
    "init_args: 5}",
    "options by numbers": "data: {class_path: lit_offrl.datamodules.D4RLDataModule, "
    "init_args: {5: 5}}",
    "keys that are numbers": "{5: {}}",
    "unknown options": "data: {class_path: lit_offrl.datamodules.D4RLDataModule, "
    "init_args: {dataset: x, colour: red}}",
    "a dataset that is a number": "data: {class_path: lit_offrl.datamodules.D4RLDataModule, "
    "init_args: {dataset: 5}}",
    "too deep": "[" * 600,
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_an_unreadable_config_is_one_line_for_every_verb(text, changed, traps, capsys):
    path = changed(text=text)
    for verb in ("fit", "ope", "figures"):
        assert run(verb, path) == 2, verb
        one_line(capsys)


@pytest.mark.parametrize(
    "text",
    [
        "model: []",
        "model: {class_path: []}",
        "trainer: 5",
        "trainer: [1]",
        "seed_everything: [1]",
        "seed_everything: {a: 1}",
        "checkpoint: x",
        "trainer: {max_steps: {a: b}}",
        "trainer: {max_steps: many}",
    ],
)
def test_an_unreadable_config_of_a_run_is_one_line_for_fit(text, changed, capsys):
    whole = {}

    def change(config):
        whole.update(config | yaml.safe_load(text))
        config.clear()
        config.update(whole)

    assert main(["fit", "--ckpt_path", changed(change), "--evaluation.episodes", "0", *QUIET]) == 2
    one_line(capsys)


ODD_VALUES = [None, 10**30, [1, "a"], torch.ones(2)]
ODD_PLACES = [
    *[(name,) for name in ("state_dict", "global_step", "hyper_parameters", "callbacks", "loops")],
    *[(name,) for name in ("optimizer_states", "lr_schedulers", "pytorch-lightning_version")],
    ("state_dict", "normalizer.low"),
    ("hyper_parameters", "observation_dim"),
    ("hyper_parameters", "hidden"),
    (CHECKPOINT_KEY,),
    (CHECKPOINT_KEY, "class_path"),
    (CHECKPOINT_KEY, "spec"),
    (CHECKPOINT_KEY, "spec", "action_dim"),
    (CHECKPOINT_KEY, "spec", "handling"),
    ("callbacks", "Curves"),
    ("callbacks", "Curves", "history"),
    ("loops", "fit_loop"),
    ("loops", "fit_loop", "epoch_loop.batch_progress"),
]


@pytest.mark.parametrize("place", ODD_PLACES, ids=".".join)
def test_a_part_of_another_kind_is_one_line(place, trained, folder, capsys):
    for value in ODD_VALUES:
        checkpoint = torch.load(trained, weights_only=True)
        part = checkpoint
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        torch.save(checkpoint, "hostile.ckpt")
        for read in (lambda: read_checkpoint("hostile.ckpt"), lambda: load_module("hostile.ckpt")):
            try:
                read()
            except ConfigError as error:
                assert "hostile.ckpt: " in str(error), (place, value)


@pytest.mark.parametrize("name", ["optimizer_states", "lr_schedulers"])
def test_a_state_that_cannot_be_taken_up_is_one_line(name, trained, folder, capsys):
    checkpoint = torch.load(trained, weights_only=True)
    torch.save({**checkpoint, name: 7}, "hostile.ckpt")
    assert run("fit", "hostile.ckpt", "--trainer.logger", "false") == 2
    assert "hostile.ckpt: cannot be resumed: 'int' object" in one_line(capsys)


def test_moments_of_other_shapes_than_the_weights_are_one_line(trained, folder, capsys):
    for number, name in enumerate(("exp_avg", "exp_avg_sq")):
        checkpoint = torch.load(trained, weights_only=True)
        states = checkpoint["optimizer_states"][0]["state"]
        states[0][name] = torch.zeros(1)  # fused AdamW would read beyond its end
        torch.save(checkpoint, "hostile.ckpt")
        assert run("fit", "hostile.ckpt", "--trainer.logger", "false") == 2, number
        said = one_line(capsys)
        assert "hostile.ckpt: cannot be resumed: its optimiser has" in said
        assert f"{name} of shape (1,) for weight 0 of '" in said


@pytest.mark.parametrize("run_id", ["../x", "a/../../x", "", "a\n", "x" * 300])
def test_an_id_that_leads_elsewhere_is_no_run(run_id):
    there = {"run_id": run_id, "tracking_uri": "sqlite:///mlflow.db"}
    good = {"run_id": "0" * 32, "tracking_uri": "sqlite:///mlflow.db"}
    assert mlflow_runs({"mlflow": {**there, "beside": [there, good]}}) == [good]
