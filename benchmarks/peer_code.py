"""The peers' own training code, run as it lies in a checkout that the user has.

Their files are imported unchanged and their own loops run, on made-up rows. Each loop is told apart
into steps by something that it calls once a step and that is put in the place of what is not needed
for one: wandb's log, tqdm's bar, the loop over batches. Packages that their files import but that
no step needs (environments, trackers, readers of other data) are stood in for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pickle
import runpy
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils import data as torch_data

from benchmarks.peer_turns import LoopFailure, Pace

_ENDLESS = 10**9
"""Steps of a loop, which is ended before."""

# ---- stand-ins ---------------------------------------------------------------------------------


class _AnyType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Anything(metaclass=_AnyType):
    """Does nothing, whatever is asked of it: a function, a class, a decorator, a base class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take whatever is given."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return another one."""
        return Anything()

    def __getattr__(self, name: str) -> Any:
        """Return another one."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: set[str]) -> None:
        self._packages = packages

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def stand_in(*packages: str) -> list[Any]:
    """Import stand-ins of packages, and of whatever is in them, for the rest of this process."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]
    sys.meta_path.insert(0, _Finder(set(packages)))
    return [importlib.import_module(name) for name in packages]


def absent(*packages: str) -> list[str]:
    """Return those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def told(file: str) -> Iterator[None]:
    """Say what of a checkout's file is missing.

    Raises:
        LoopFailure: it does not run.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise LoopFailure(f"{file}: imports {error.name}, which is not installed") from error
    except LoopFailure:
        raise
    except Exception as error:
        raise LoopFailure(f"{file}: {type(error).__name__}: {error}") from error


def load_file(checkout: Path, file: str) -> Any:
    """Import one file of a checkout.

    Raises:
        LoopFailure: there is none.
    """
    path = checkout / file
    if not path.is_file():
        raise LoopFailure(f"{file}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _on_cpu() -> None:
    """Have what is sent to CUDA by name stay on the CPU."""
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


# ---- made-up rows as the peers read them -------------------------------------------------------


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Columns of a file of rows, as D4RL's functions return them."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class _Env:
    """What a training script asks an environment for before its first step."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        observations, actions = columns["observations"], columns["actions"]
        self.observation_space = SimpleNamespace(shape=observations.shape[1:])
        high = np.ones(actions.shape[1:], np.float32)
        self.action_space = SimpleNamespace(
            shape=actions.shape[1:], high=high, low=-high, seed=lambda seed: None
        )

    def seed(self, seed: int) -> None:
        """There is nothing to seed."""


def _d4rl(columns: dict[str, np.ndarray]) -> None:
    """Stand in for gym and d4rl, with made-up rows in the place of an environment's."""
    gym, d4rl = stand_in("gym", "d4rl")
    gym.make = lambda name: _Env(columns)
    gym.wrappers = SimpleNamespace(
        TransformObservation=lambda env, change: env, TransformReward=lambda env, change: env
    )
    d4rl.qlearning_dataset = lambda env: columns


# ---- CORL --------------------------------------------------------------------------------------


def corl(pace: Pace, checkout: Path, file: str, rows: Path, batch_size: int) -> None:
    """``train`` of one of CORL's files; a step ends when it logs."""
    with told(file):
        columns = read_rows(rows)
        _d4rl(columns)
        pyrallis, wandb = stand_in("pyrallis", "wandb")
        pyrallis.wrap = lambda: lambda function: function
        wandb.log = lambda *args, **kwargs: pace.step()
        module = load_file(checkout, file)
        config = module.TrainConfig(
            device="cpu",
            batch_size=batch_size,
            buffer_size=len(columns["rewards"]),
            max_timesteps=_ENDLESS,
            eval_freq=_ENDLESS,
        )
        module.train(config)


# ---- BCQ ---------------------------------------------------------------------------------------


def bcq(pace: Pace, checkout: Path, file: str, rows: Path, batch_size: int) -> None:
    """``train`` of the authors' file on their buffer; a step ends when it samples a batch."""
    with told(file):
        columns, cpu = read_rows(rows), torch.device("cpu")
        sizes = [columns[name].shape[1] for name in ("observations", "actions")]
        number = len(columns["rewards"])
        utils = load_file(checkout, str(Path(file).with_name("utils.py")))

        class Buffer(utils.ReplayBuffer):  # type: ignore[name-defined]
            """Tells of each batch."""

            def sample(self, batch_size: int) -> Any:
                """Draw a batch, after a step has ended."""
                pace.step()
                return super().sample(batch_size)

        buffer = Buffer(*sizes, cpu, max_size=number)
        for name, own in (("observations", "state"), ("actions", "action")):
            getattr(buffer, own)[:] = columns[name]
        buffer.next_state[:], buffer.size = columns["next_observations"], number
        buffer.reward[:, 0], buffer.not_done[:, 0] = columns["rewards"], ~columns["terminals"]
        load_file(checkout, file).BCQ(*sizes, 1.0, cpu).train(buffer, _ENDLESS, batch_size)


# ---- CleanDiffuser -----------------------------------------------------------------------------


def clean_diffuser(
    pace: Pace, checkout: Path, file: str, config: str, rows: Path, batch_size: int
) -> None:
    """``pipeline`` of one of CleanDiffuser's files; a step ends when it takes the next batch.

    Its four workers that make batches are none here, since their time would not be counted.
    """
    with told(file):
        _d4rl(read_rows(rows))
        (hydra,) = stand_in("hydra", "wandb", *absent(*_CLEAN_DIFFUSER_NEEDS_NO))[:1]
        hydra.main = lambda *args, **kwargs: lambda function: function
        sys.path[:0] = [str(checkout), str(checkout / "pipelines")]
        module = load_file(checkout, file)
        loop, loader = module.loop_dataloader, module.DataLoader

        def loop_batches(batches: Iterable[Any]) -> Iterator[Any]:
            for batch in loop(batches):
                pace.step()
                yield batch

        module.loop_dataloader = loop_batches
        module.DataLoader = lambda dataset, **options: loader(
            dataset, **{**options, "num_workers": 0, "pin_memory": False}
        )
        options = _composed(checkout / config)
        module.pipeline(
            SimpleNamespace(
                **{**options, "device": "cpu", "mode": "train", "batch_size": batch_size}
            )
        )


_CLEAN_DIFFUSER_NEEDS_NO = (
    *("omegaconf", "zarr", "numcodecs", "numba", "dill", "av", "einops", "torchvision"),
)
"""Of videos, pictures, transformers and data sets of other tasks."""


def _composed(path: Path) -> dict[str, Any]:
    """A config of hydra's with the task that it names by default."""
    options: dict[str, Any] = yaml.safe_load(path.read_text())
    task = next(one["task"] for one in options["defaults"] if "task" in one)
    text = (path.parent / "task" / f"{task}.yaml").read_text()
    return {**options, "task": SimpleNamespace(**yaml.safe_load(text))}


# ---- ldcq --------------------------------------------------------------------------------------

_ENV = "maze2d-large-v1"  # its name tells their code how snippets are cut and rewards are meant
_NAME = f"made_up_{_ENV}"


class _Bar:
    """tqdm's bar, whose loop over batches is told apart into steps; the one over epochs is not."""

    def __init__(self, items: Iterable[Any], pace: Pace, desc: str | None) -> None:
        self._items, self._pace, self._desc = items, pace, desc

    def __iter__(self) -> Iterator[Any]:
        """Take the next item, after a step has ended."""
        for item in self._items:
            if self._desc is None:
                self._pace.step()
            yield item

    def set_description(self, text: str) -> None:
        """Show nothing."""


def _ldcq(pace: Pace, checkout: Path) -> None:
    """Stand in for what ldcq's files import; a step ends when their bar goes on."""
    stand_in("comet_ml", "gym", "d4rl", "ipdb", *absent("h5py"))
    (tqdm,) = stand_in("tqdm")
    tqdm.tqdm = lambda items, desc=None: _Bar(items, pace, desc)
    _on_cpu()
    sys.path[:0] = [str(checkout), str(checkout / "training")]


def ldcq_vae(pace: Pace, checkout: Path, file: str, rows: Path, horizon: int) -> None:
    """The script of the first stage; a step ends when its loader gives the next batch."""
    with told(file):
        _ldcq(pace, checkout)
        Path("data").mkdir()
        Path("checkpoints").mkdir()
        with Path(f"data/{_ENV}.pkl").open("wb") as out:
            pickle.dump(read_rows(rows), out)

        class Loader(torch_data.DataLoader[Any]):
            """Tells of each batch."""

            def __iter__(self) -> Any:
                """Take the next batch, after a step has ended."""
                for batch in super().__iter__():
                    pace.step()
                    yield batch

        torch_data.dataloader.DataLoader = Loader  # type: ignore[misc]
        if not (checkout / file).is_file():
            raise LoopFailure(f"{file}: there is no such file")
        sys.argv = [file, "--env_name", _ENV, "--test_split", "0.0", "--horizon", str(horizon)]
        sys.argv += ["--start_training_state_decoder_after", "-1"]
        runpy.run_path(str(checkout / file), run_name="__main__")


def ldcq_prior(
    pace: Pace, checkout: Path, file: str, latents: Path, steps: int, batch_size: int
) -> None:
    """``train`` of the second stage, on latents that are made up."""
    with told(file):
        _ldcq(pace, checkout)
        module = load_file(checkout, file)
        module.train(
            SimpleNamespace(
                **{"lrate": 1e-4, "batch_size": batch_size, "net_type": "unet", "n_hidden": 512},
                **{"n_epoch": _ENDLESS, "test_split": 0.0, "sample_z": 1, "drop_prob": 0.1},
                **{"diffusion_steps": steps, "normalize_latent": 0, "schedule": "linear"},
                **{"predict_noise": 0, "device": "cpu", "checkpoint_dir": "."},
                **{"dataset_dir": str(latents), "skill_model_filename": f"{_NAME}.pth"},
            )
        )


def ldcq_q(
    pace: Pace, checkout: Path, file: str, latents: Path, number: int, batch_size: int
) -> None:
    """``learn`` of the third stage, with snippets drawn by priority and stored candidates."""
    with told(file):
        _ldcq(pace, checkout)
        Path("q_checkpoints").mkdir()
        module = load_file(checkout, file)
        module.tqdm = lambda items: items  # filling the buffer is no step
        buffer, state_dim, latent_dim = module.PER_buffer_filler(
            str(latents), _NAME, test_prop=0.0, sample_max_latents=True, do_diffusion=0
        )
        options = {"total_prior_samples": number, "num_prior_samples": number, "device": "cpu"}
        agent = module.DDQN(state_dim=state_dim, z_dim=latent_dim, **options)
        agent.learn(buffer, diffusion_model_name=_NAME, per_buffer=1, batch_size=batch_size)


def ldcq_decision(
    pace: Pace,
    checkout: Path,
    file: str,
    sizes: tuple[int, int],
    steps: int,
    number: int,
) -> None:
    """The best of n latents of the prior in a state, by the trained agent's own function."""
    with told(file):
        _ldcq(pace, checkout)
        module, (state_dim, latent_dim) = load_file(checkout, file), sizes
        net = module.Model_mlp(state_dim, 512, latent_dim, embed_dim=128, net_type="unet")
        betas = {"betas": (1e-4, 0.02), "n_T": steps, "device": "cpu", "drop_prob": 0.0}
        prior = module.Model_Cond_Diffusion(net, x_dim=state_dim, y_dim=latent_dim, **betas).eval()
        agent = module.DDQN(
            state_dim=state_dim, z_dim=latent_dim, diffusion_prior=prior, device="cpu"
        )
        agent.target_net_0, agent.target_net_1 = agent.q_net_0.eval(), agent.q_net_1.eval()
        state = torch.randn(1, state_dim)
        while True:
            pace.step()
            latents, values = agent.get_max_skills(state.repeat_interleave(number, 0), is_eval=True)
            latents[torch.argmax(values)]


def write_latents(
    folder: Path, snippets: int, state_dim: int, latent_dim: int, number: int
) -> None:
    """Store made-up latents in the files that ldcq's second and third stage read."""
    random = np.random.default_rng(0)

    def save(what: str, *shape: int) -> None:
        values = random.standard_normal((snippets, *shape), dtype=np.float32)
        np.save(folder / f"{_NAME}_{what}.npy", np.abs(values) if what.endswith("std") else values)

    for what in ("states", "sT"):
        save(what, state_dim)
    for what in ("latents", "latents_std"):
        save(what, latent_dim)
    save("rewards", 1)
    save("prior_latents", number, latent_dim)
