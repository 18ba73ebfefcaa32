"""Steps that are captured once and replayed end in the same bits as steps that are not.

No GPU is needed: a tape of operators stands for CUDA's graphs, and is as strict as they are.
"""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from lit_offrl import modules
from lit_offrl.modules import BCModule, graphs

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item"}
"""Operators that wait for the device."""
MADE_OF_PYTHON = {"lift_fresh", "lift", "lift_fresh_copy"}
"""What brings Python's numbers to the device, which waits for it."""


class Tape(TorchDispatchMode):
    """Plays operators again on the same memory, with nothing of the Python around them.

    As a CUDA graph does, it refuses what waits for the device, and computes nothing as it records:
    what was in memory before is in it again afterwards.
    """

    def __init__(self, device):
        super().__init__()
        self.operators, self.before, self.known = [], {}, {}
        self.warmed_up, self.captured, self.replayed = 0, 0, 0

    # ---- what a recorder does ------------------------------------------------------------------

    def warm_up(self, step):
        self.warmed_up += 1
        step()

    def capture(self, step, generator):
        tape = Tape(None)
        state = generator.get_state()
        with tape:
            step()
        for before, copy in tape.before.values():
            if not torch.equal(before, copy):  # others may be files that are not to be written
                before.copy_(copy)
        generator.set_state(state)
        self.captured += 1

        def replay():
            self.replayed += 1
            tape.replay()

        return replay

    # ---- the tape itself -----------------------------------------------------------------------

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in WAITS | MADE_OF_PYTHON or _indexes_by_mask(name, args):
            raise RuntimeError(f"{operator} waits for the device")
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:  # was there before the capture
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.before[storage.data_ptr()] = whole, whole.clone()
                self.known[storage.data_ptr()] = storage
        result = operator(*args, **kwargs)
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            self.known.setdefault(storage.data_ptr(), storage)  # and keeps its memory from now on
        self.operators.append((operator, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self):
        for operator, args, kwargs, result in self.operators:
            again = operator(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(value):
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, list | tuple | type({}.values())):
        return [tensor for each in value for tensor in tensors(each)]
    return []


def _indexes_by_mask(name, args):
    if not name.startswith("index"):
        return False
    return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors(args[1]))


DENOISER = (
    "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.hidden [8]"
    " --model.init_args.diffusion_steps 2"
)
STAGE1 = (
    "--model.init_args.horizon 5 --model.init_args.width 16 --model.init_args.gru_layers 1"
    " --model.init_args.latent_dim 2"
)
PLAN = (
    "--model.init_args.width 16 --model.init_args.multipliers [4] --model.init_args.horizon 8"
    " --model.init_args.diffusion_steps 2 --model.init_args.ema_start 2"
    " --model.init_args.ema_every 2"
)
METHODS = {
    "TD3BCModule": "--model.init_args.hidden [8] --model.init_args.decay cosine",
    "IQLModule": "--model.init_args.hidden [8] --model.init_args.dropout 0.1",
    "BCModule": "--model.init_args.head deterministic --trainer.gradient_clip_val 0.01",
    "ReBRACModule": "--model.init_args.hidden [8] --model.init_args.chunk 2",
    "DQLModule": f"{DENOISER} --trainer.gradient_clip_val 5",
    "AWRModule": "--model.init_args.hidden [8] --model.init_args.bootstrap false",
    "ACGModule": "--model.init_args.hidden [8] --model.init_args.representation one_hot",
    "CQLModule": "--model.init_args.hidden [8] --model.init_args.num_actions 3"
    " --model.init_args.warmup_steps 11 --model.init_args.lagrange 5",
    "DiffusionBCModule": "--model.init_args.width 16 --model.init_args.blocks 1",
    "IDQLModule": f"{DENOISER} --trainer.precision bf16-mixed",
    "ACDModule": f"{DENOISER} --model.init_args.representation learned",
    "BCQModule": "--model.init_args.hidden [8] --model.init_args.vae_hidden [8]",
    "FQLModule": "--model.init_args.hidden [8] --model.init_args.normalize_q true",
    "IFQLModule": "--model.init_args.hidden [8] --model.init_args.sampler heun",
    "DiffuserModule": f"{PLAN} --model.init_args.goal_dims [0,1]",
    "DecisionDiffuserModule": f"{PLAN} --model.init_args.inverse_hidden [8]"
    " --model.init_args.history 2",
    "DecisionTransformerModule": "--model.init_args.width 8 --model.init_args.blocks 1"
    " --model.init_args.context 4 --model.init_args.warmup_steps 9",
    "LDCQStage1Module": STAGE1,
    "LDCQStage2Module": "--model.init_args.stage1 STAGE1 --model.init_args.width 16",
}
# The further methods are for CI: they are slower, and go the same way.
MARKED = [pytest.param(name, marks=[pytest.mark.slow] * (i > 2)) for i, name in enumerate(METHODS)]
# Of 10 batches an epoch the last is smaller.
FIT = ("--trainer.max_steps", "26", "--trainer.log_every_n_steps", "100")
FIT += ("--data.init_args.validation_fraction", "0", "--checkpoint.every_n_train_steps", "13")
STEPS = "--model.init_args.steps_per_call"
GRAPHS = "--model.init_args.cuda_graphs"


@pytest.fixture
def tapes(monkeypatch):
    """Let steps be captured on the CPU; what captures, of each fit."""
    made = []

    class Noted(Tape):
        def __init__(self, device):
            super().__init__(device)
            if device is not None:
                made.append(self)

    monkeypatch.setitem(graphs.RECORDERS, "cpu", Noted)
    return made


@pytest.fixture
def stage1(lit):
    """Options of a second stage of LDCQ."""
    place = ("--checkpoint.dirpath", "stage1", "--trainer.max_steps", "1", GRAPHS, "false")
    assert lit(*STAGE1.split(), *place, module="LDCQStage1Module") == 0
    return METHODS["LDCQStage2Module"].replace("STAGE1", "stage1/last.ckpt")


class Killed(Exception):
    """Stands for a kill within a call."""


@pytest.mark.parametrize("method", MARKED)
def test_replayed_steps_end_in_the_same_bits(
    lit, same_state, tapes, capsys, monkeypatch, request, method
):
    options = METHODS[method]
    if "STAGE1" in options:
        options = request.getfixturevalue("stage1")

    def fit(name, graphs, *more):
        words = (*FIT, *options.split(), STEPS, "20", GRAPHS, graphs, "--checkpoint.dirpath", name)
        assert lit(*words, *more, module=method) == 0
        return f"{name}/last.ckpt"

    eager = fit("eager", "false")
    assert not tapes
    same_state(eager, fit("graphs", "true"))
    (tape,) = tapes
    two = ("TD3BCModule", "ReBRACModule", "CQLModule", "DiffuserModule", "DecisionDiffuserModule")
    assert tape.captured == 1 + (method in two) and tape.replayed >= 5
    take, taken = graphs.Graphs.take, []

    def dying(self, *args):
        taken.append(take(self, *args))
        if len(taken) == 16:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(graphs.Graphs, "take", dying)
        fit("cut", "null")
    same_state(eager, fit("cut", "null", "--ckpt_path", "cut/last.ckpt"))
    assert "without CUDA graphs" not in capsys.readouterr().out


def test_every_class_whose_steps_can_be_captured_is_tried_here():
    kinds = (kind for kind in vars(modules).values() if isinstance(kind, type))
    capturable = {
        kind.__name__
        for kind in kinds
        if issubclass(kind, modules.OfflineModule) and kind.eager_because is None
    }
    assert capturable - {"OfflineModule"} == set(METHODS)


def test_batches_of_another_size_have_graphs_of_their_own(lit, same_state, tapes, monkeypatch):
    take = graphs.Graphs.take

    def cut(self, batch, number):
        if number % 2:
            batch = type(batch)._make(None if part is None else part[:40] for part in batch)
        take(self, batch, number)

    monkeypatch.setattr(graphs.Graphs, "take", cut)
    for name, most in (("all", 8), ("one", 1), ("none", 0)):
        monkeypatch.setattr(graphs, "MOST", most)
        assert lit(*FIT, STEPS, "20", "--checkpoint.dirpath", name) == 0
    same_state("all/last.ckpt", "none/last.ckpt")
    same_state("one/last.ckpt", "none/last.ckpt")
    assert [tape.captured for tape in tapes] == [2, 1, 0]


def test_checkpoints_of_either_way_go_on_the_other_way(lit, same_state, tapes):
    options = ("--model.init_args.learning_rate", "1e-2", STEPS, "20")
    for first, then in (("false", "true"), ("true", "false")):
        place = ("--checkpoint.dirpath", first, "--trainer.max_steps", "9")
        assert lit(*options, *place, GRAPHS, first) == 0
        (state,) = torch.load(f"{first}/last.ckpt", weights_only=True)["optimizer_states"]
        (group,) = state["param_groups"]
        assert type(group["lr"]) is float and group["lr"] == 1e-2 and not group["capturable"]
        assert lit(*FIT, *options, "--ckpt_path", f"{first}/last.ckpt", GRAPHS, then) == 0
    same_state("false/last.ckpt", "true/last.ckpt")
    assert [tape.captured for tape in tapes] == [1, 1]


@pytest.mark.parametrize(
    ("what", "said"),
    [("loss", "loss 'extra'"), ("gradient", "the gradient of 'actor'"), ("column", "column 'act")],
)
def test_what_is_not_finite_in_a_replay_is_named_and_not_saved(
    lit, tapes, monkeypatch, capsys, what, said
):
    losses, take, first = BCModule.losses, graphs.Graphs.take, []

    def spoiled(self, batch):
        """Spoil what is asked for in batches whose first observation is a large one."""
        found = losses(self, batch)
        zero_or_nan = torch.where(batch.observations[0, 0] > 1e6, torch.nan, 0.0)
        if what == "loss":
            return found | {"extra": found["actor"].detach() * zero_or_nan}
        if what == "gradient":
            (parameter, *_) = self.actor.parameters()
            parameter.register_hook(lambda gradient: gradient + zero_or_nan)
        return found

    def marked(self, batch, number):
        first.append(self._module.trainer.global_step)
        if first[-1] in (14, 16):
            batch.observations[0, 0] = 1e7
            if what == "column":
                batch.actions[3] = torch.nan
        take(self, batch, number)

    monkeypatch.setattr(BCModule, "losses", spoiled)
    monkeypatch.setattr(graphs.Graphs, "take", marked)
    assert lit(*FIT, "--checkpoint.dirpath", "run", GRAPHS, "true", STEPS, "20") == 3
    assert first[-1] == 16 and tapes[0].replayed > 4  # the call was brought to its end
    errors = capsys.readouterr().err
    assert errors.startswith(f"lit-offrl: error: {said}") and "is not finite at step 14;" in errors
    assert str(Path("run/last.ckpt").resolve()) in errors and errors.count("\n") == 1
    saved = torch.load("run/last.ckpt", weights_only=True)
    assert saved["global_step"] == 13
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


# ---- steps that are not captured ---------------------------------------------------------------


class Deciding(BCModule):
    """Looks at a number to decide what to do."""

    eager_because = None

    def losses(self, batch):
        found = super().losses(batch)
        return found if float(found["actor"]) < 0 else {"actor": 2 * found["actor"]}


class Undeclared(BCModule):
    """Derived by a user who has not thought of graphs."""


def test_steps_that_wait_for_the_device_are_not_captured(lit, same_state, tapes, capsys):
    method = f"{__name__}.Deciding"
    for name, asked in (("eager", "false"), ("graphs", "null")):
        words = (*FIT, STEPS, "20", GRAPHS, asked, "--checkpoint.dirpath", name)
        assert lit(*words, module=method) == 0
    same_state("eager/last.ckpt", "graphs/last.ckpt")
    (tape,) = tapes
    assert (tape.captured, tape.warmed_up) == (0, 3)
    said = capsys.readouterr().out
    assert said.count("steps run without CUDA graphs: a step cannot be captured (aten._local") == 1
    assert lit(*FIT, STEPS, "20", GRAPHS, "true", module=method) == 2
    error = capsys.readouterr().err
    assert "cuda_graphs is true, but a step cannot be captured" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--trainer.accumulate_grad_batches 2", "gradients are accumulated"),
        (f"{STEPS} 1", "calls have one step, see steps_per_call"),
        ("--trainer.callbacks tests.test_graphs.Looking", "a callback looks at the gradients of"),
    ],
)
def test_fits_that_no_graph_can_hold_say_why(lit, tapes, capsys, options, why):
    assert lit(*options.split(), "--trainer.max_steps", "2") == 0
    assert f"steps run without CUDA graphs: {why}" in capsys.readouterr().out and not tapes
    assert lit(*options.split(), GRAPHS, "true") == 2
    assert f"cuda_graphs is true, but {why}" in capsys.readouterr().err


class Looking(Callback):
    """Sees that calls have several batches, and looks at the gradients of each."""

    sees_calls = True

    def on_before_optimizer_step(self, *args):
        """Do nothing."""


def test_a_derived_class_has_to_say_that_its_steps_can_be_captured(lit, tapes, capsys):
    assert BCModule.eager_because is None
    assert lit("--trainer.max_steps", "2", module=f"{__name__}.Undeclared") == 0
    said = "without CUDA graphs: Undeclared does not say that its steps can be captured"
    assert said in capsys.readouterr().out and not tapes


def test_graphs_are_refused_where_there_is_no_gpu(lit, capsys):
    assert lit(GRAPHS, "true") == 2
    error = capsys.readouterr().err
    assert "cuda_graphs is true, but the fit runs on cpu: leave it out" in error
    assert error.count("\n") == 1
    assert lit("--trainer.max_steps", "1") == 0
    assert "graphs" not in capsys.readouterr().out
