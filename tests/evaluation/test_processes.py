import numpy as np
import torch
from torch import distributed

from lit_offrl.common.errors import EvaluationError
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.evaluate import evaluate_module
from tests.helpers import forked


class Module(torch.nn.Module):
    spec = DatasetSpec("data", 15, 3, env_id="HopperBulletEnv-v0")
    hparams, device, seed = {}, torch.device("cpu"), 0
    scale = 3.0

    def policy(self):
        return self

    @classmethod
    def policy_options(cls):
        return {}

    def reset(self, mask=None):
        pass

    def act(self, observations):
        return np.tanh(self.scale * observations[:, :3])


def evaluate(rank, folder):
    """What each of the two processes does."""
    module = Module()
    options = {"episodes": 5, "seed": 4, "num_envs": 2, "max_episode_steps": 20}
    alone = evaluate_module(module, **options)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    shared = evaluate_module(module, **options)
    assert shared.episodes == (0, 1, 2, 3, 4)
    assert shared.returns == alone.returns and shared.seeds == alone.seeds
    if rank == 1:
        module.scale = np.nan
    try:
        evaluate_module(module, **options)
    except EvaluationError as error:
        (folder / f"said{rank}").write_text(str(error))
    distributed.destroy_process_group()


def test_two_processes_share_the_episodes_out_and_agree_on_all(tmp_path):
    processes = [
        forked(evaluate, rank, tmp_path, stderr=tmp_path / f"errors{rank}") for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        process.join(600)
        assert process.exitcode == 0, (tmp_path / f"errors{rank}").read_text()
        # what one process met is raised in both: nobody waits for ever
        said = (tmp_path / f"said{rank}").read_text()
        assert "at step 0 of episode 1 is not finite" in said
