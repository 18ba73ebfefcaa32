"""Claims are judged by intervals over seeds; the papers' own file can be read."""

import math

import pytest
import yaml
from scipy import stats

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.runs import make_run
from lit_offrl.evaluation.scored import ScoredRun, scored
from lit_offrl.experiments.claims import OF_THE_PAPERS, judge, read_claims

BASE = {"paper": "P", "where": "Table 1", "says": "A is above B."}


@pytest.fixture
def claims(tmp_path):
    def write(claim, rows=None):
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump({"rows": rows or {}, "claims": [{**BASE, **claim}]}))
        return read_claims(path)

    return write


@pytest.fixture
def findings(claims, made_record):
    """Judge one claim by scores of seeds 0, 1, …, given by method and options."""

    def find(claim, scores, rows=None, measured=(), **changes):
        read = claims(claim, rows)
        runs = [
            make_run(
                made_record(
                    score,
                    seed,
                    method=method,
                    policy_options=dict(options),
                    **{name: change(method, seed) for name, change in changes.items()},
                ),
                f"{method}, {options}, {seed}",
            )
            for (method, *options), row in scores.items()
            for seed, score in enumerate(row)
        ]
        return judge(read.claims[0], read, [*map(scored, runs), *measured])

    return find


def test_a_difference_has_the_interval_of_welch_and_its_verdict(findings):
    claim = {"above": {"row": "acd", "rivals": ["bc"]}, "steps": 1000}
    ahead, behind = [60.0, 62.0, 64.0], [10.0, 30.0, 5.0]
    for first, second, verdict in (
        (ahead, behind, "holds"),
        (behind, ahead, "does not hold"),
        (ahead, [60.0, 64.0, 63.0], "not decidable"),
    ):
        (found,) = findings(claim, {("ACDModule",): first, ("BCModule",): second})
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        assert found.verdict == verdict
        assert found.excess == pytest.approx(
            (sum(first) / 3 - sum(second) / 3, interval.low, interval.high)
        )
        assert found.budget == 0.5  # 500 of 1,000 steps
    (single,) = findings(claim, {("ACDModule",): [90.0], ("BCModule",): [1.0]})
    assert single.verdict == "not decidable" and math.isnan(single.excess[1])
    assert findings(claim, {("ACDModule",): ahead}) == []


def test_the_same_weights_are_compared_seed_by_seed(findings):
    claim = {"above": {"row": "acd_f", "rivals": ["acd"]}}
    rows = {
        "acd": [{"method": "acd", "options": {"policy.act_mode": None}}],
        "acd_f": [{"method": "acd", "options": {"policy.act_mode": "acd_f"}}],
    }
    scores = {("ACDModule",): [10.0, 50.0, 90.0]}
    scores["ACDModule", ("act_mode", "acd_f")] = [12.0, 51.5, 92.5]
    (of_others,) = findings(claim, scores, rows)
    (of_same,) = findings(
        claim, scores, rows, checkpoint_sha256=lambda method, seed: f"{method}{seed}"
    )
    assert of_others.verdict == "not decidable" and of_same.verdict == "holds"
    assert of_same.excess[0] == pytest.approx(2.0)


def test_runs_of_another_protocol_are_not_compared(findings):
    claim = {"above": {"row": "acd", "rivals": ["bc"]}}
    scores = {("ACDModule",): [60.0, 62.0], ("BCModule",): [1.0, 2.0]}
    of_method = findings(claim, scores, dataset_sha256=lambda method, seed: method * 8)
    assert of_method == [] and len(findings(claim, scores)) == 1


def test_settings_are_compared_with_their_like(findings):
    claim = {"above": {"row": "acd", "rivals": ["idql"]}}
    scores = {
        (method, ("clipping", clipping), ("num_samples", count)): [1.0, 2.0]
        for method, count in (("ACDModule", 1), ("IDQLModule", 64))
        for clipping in ("sample", "estimate")
    }
    assert findings(claim, scores) == []  # the numbers of candidates differ
    rows = {
        "acd": [{"method": "acd", "options": {"policy.num_samples": "1"}}],
        "idql": [{"method": "idql", "options": {"policy.num_samples": "64"}}],
    }
    both = findings(claim, scores, rows)
    assert [found.numbers.count("policy.clipping=sample") for found in both] == [0, 2]


def test_a_rise_is_the_slope_of_each_seed_from_the_first_value_to_the_last(findings):
    claim = {"rises": {"row": "idql", "along": "policy.num_samples"}}
    scores = {
        ("IDQLModule", ("num_samples", count)): [base + 5.0 * rank for base in (0.0, 40.0, 80.0)]
        for rank, count in enumerate((1, 4, 16))
    }
    scores["IDQLModule", ("num_samples", 16)][0] += 1.0
    (found,) = findings(claim, scores)
    assert found.verdict == "holds"
    assert found.excess[0] == pytest.approx((11 + 10 + 10) / 3)
    assert found.numbers.startswith("policy.num_samples 1: 40.0 (0.0, 40.0, 80.0); 4:")


def run_of(method, seed, date="", steps=201, of="", weights=None, **numbers):
    """Make a run with some numbers."""
    return ScoredRun(
        method=method,
        module=method,
        dataset="kitchen",
        options=(),
        seed=seed,
        source=f"{method} {seed} {date}".strip(),
        numbers=numbers,
        protocol=(("protocol", of),),
        steps=steps,
        weights=weights,
        date=date,
    )


def test_a_metric_is_judged_by_its_excess(findings):
    measured = [
        run_of("ldcq", seed, **{name: value + seed / 10})
        for name, value in (("wide", 0.9), ("narrow", 0.3))
        for seed in range(3)
    ]
    claim = {"metric": {"name": "wide", "minus": "narrow", "above": 0.5}, "steps": 402}
    (found,) = findings(claim, {}, measured=measured)
    assert found.excess[0] == pytest.approx(0.1) and found.verdict == "holds"
    assert found.budget == 0.5
    assert found.numbers.startswith("ldcq: 0.600 (0.600, 0.600, 0.600), to be above 0.5")
    claim = {"metric": {"name": "narrow", "above": 0.9}}
    assert findings(claim, {}, measured=measured)[0].verdict == "does not hold"
    assert findings({**claim, "datasets": ["maze*"]}, {}, measured=measured) == []


def test_an_option_without_numbers_is_one_line(findings):
    claim = {"rises": {"row": "acd", "along": "policy.act_mode"}}
    scores = {("ACDModule", ("act_mode", mode)): [1.0, 2.0] for mode in ("acd", "acd_f")}
    with pytest.raises(ConfigError, match=r"policy\.act_mode is acd: a score rises along"):
        findings(claim, scores)


METRIC = {"metric": {"name": "m", "above": 0.0}}
SCORE = {"above": {"row": "acd", "rivals": ["bc"]}}


def test_other_settings_data_and_budgets_of_a_metric_are_judged_apart(findings):
    runs = [
        run_of("dvf", 0, "2", m=0.1),
        run_of("dvf", 0, "1", m=0.9),
        run_of("dvf", 1, "1", m=0.2),
        run_of("dvf", 2, "1", steps=20, m=0.3),
        run_of("dvf", 3, "1", of="other data", m=0.4),
        run_of("old", 0, m=0.5),
    ]
    found = [each.numbers for each in findings(METRIC, {}, measured=runs)]
    assert found == ["dvf: 0.300", "dvf: 0.150 (0.100, 0.200)", "old: 0.500", "dvf: 0.400"]


@pytest.mark.parametrize("dates", [("", ""), ("", "2"), ("2", "2")])
@pytest.mark.parametrize(("claim", "name"), [(METRIC, "m"), (SCORE, "score")])
def test_a_seed_that_is_there_twice_needs_a_latest_date(findings, dates, claim, name):
    runs = [run_of("acd", 0, date, **{name: value}) for date, value in zip(dates, (1, 2))]
    runs += [run_of("bc", 0, score=0.0)]
    with pytest.raises(
        EvaluationError, match=r"has seed 0 twice, in acd 0.* and in acd 0.*: leave"
    ):
        findings(claim, {}, measured=runs)


@pytest.mark.parametrize(
    ("weights", "seeds", "paired"),
    [
        (("a", "b"), (0, 1), True),
        (("a", None), (0, 1), False),
        ((None, None), (0, 1), False),
        (("a", None), (0, 2), False),
    ],
)
def test_only_the_same_known_weights_of_the_same_seeds_are_paired(findings, weights, seeds, paired):
    runs = [
        run_of(method, seed, weights=text, score=base + 10.0 * place)
        for method, given, base in (("acd", (0, 1), 50.0), ("bc", seeds, 49.0))
        for place, (seed, text) in enumerate(zip(given, weights))
    ]
    (found,) = findings(SCORE, {}, measured=runs)
    assert found.excess[0] == 1.0 and (found.verdict == "holds") == paired


def test_returns_count_for_all_runs_if_a_score_is_missing(findings):
    runs = [
        *(run_of("acd", seed, **{"score": 50.0, "return": 500.0 + seed}) for seed in range(2)),
        *(run_of("bc", seed, **{"return": 100.0 + seed}) for seed in range(2)),
    ]
    (found,) = findings(SCORE, {}, measured=runs)
    assert found.excess[0] == 400.0 and found.numbers.endswith("; returns")
    runs.append(run_of("bc", 2, score=1.0))
    with pytest.raises(EvaluationError, match="bc 0 has no 'score' and bc 2 has no 'return': give"):
        findings(SCORE, {}, measured=runs)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({}, "claims.1: 'A is above B.' is given; give one of above, rises, metric"),
        ({"above": {"row": "acd"}}, "claims.1.above"),
        ({"abuve": {}}, "claims.1: unknown key 'abuve'. Did you mean 'above'?"),
        ({"rises": {"row": "acd", "along": "n"}, "steps": 0}, "claims.1.steps: 0 is given"),
    ],
)
def test_mistakes_name_the_file_and_the_key(claims, claim, said):
    with pytest.raises(ConfigError) as refused:
        claims(claim)
    assert "claims.yaml" in str(refused.value) and said in str(refused.value)


def test_the_papers_claims_can_be_read():
    papers = read_claims(OF_THE_PAPERS)
    named = [claim.paper for claim in papers.claims]
    assert {name: named.count(name) for name in named} == {"DVF": 6, "ACD": 12, "LDCQ": 10}
    rows = {claim.above.row for claim in papers.claims if claim.above}
    assert rows >= {"dvf", "acd", "acd_f", "ldcq", "ldgc"}
