import os
import subprocess
import sys

PROCESS = """
import sys, numpy as np, torch, torch.distributed as dist
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation.evaluate import evaluate_module


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


rank, store = int(sys.argv[1]), sys.argv[2]
module = Module()
options = dict(episodes=5, seed=4, num_envs=2, max_episode_steps=20)
alone = evaluate_module(module, **options)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
shared = evaluate_module(module, **options)
assert shared.episodes == (0, 1, 2, 3, 4)
assert shared.returns == alone.returns and shared.seeds == alone.seeds
if rank == 1:
    module.scale = np.nan
try:
    evaluate_module(module, **options)
except EvaluationError as error:
    print(error)
dist.destroy_process_group()
"""


def test_two_processes_share_the_episodes_out_and_agree_on_all(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        # what one process met is raised in both: nobody waits for ever
        assert "at step 0 of episode 1 is not finite" in said
