"""The page on environments says all that the records say."""

from pathlib import Path

from lit_offrl.datasets.environments import ENVIRONMENTS
from lit_offrl.envs.differences import DIFFERENCES

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_every_difference_and_every_environment_is_on_the_page():
    text = " ".join(PAGE.read_text().split())
    for env_id, sentences in DIFFERENCES.items():
        for sentence in sentences:
            assert sentence in text, f"{env_id}: {sentence}"
        facts = ENVIRONMENTS[env_id]
        row = next(line for line in PAGE.read_text().splitlines() if f"`{env_id}`" in line)
        cells = [cell.strip() for cell in row.split("|")]
        assert f"{facts.observation_dim}, {facts.action_dim}" in cells
        assert f"{facts.max_episode_steps:,}" in cells
        assert f"{facts.ref_min_score:.2f} … {facts.ref_max_score:,.2f}" in cells
