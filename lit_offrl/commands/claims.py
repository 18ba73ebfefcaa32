"""``lit-offrl claims``: which of the papers' claims hold in the runs at hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lit_offrl.commands.options import parse
from lit_offrl.common.errors import EvaluationError
from lit_offrl.common.files import begins, require_replaceable, write_whole
from lit_offrl.common.user_code import command_line
from lit_offrl.studies.runs import RunSelection
from lit_offrl.tracking.store import default_experiment, redacted

if TYPE_CHECKING:
    from lit_offrl.evaluation.scored import ScoredRun
    from lit_offrl.experiments.claims import Claim, Claims, Finding

_TITLE = "# What holds"
_MEANING = "What it means for your choice:"
_SAYS = {
    "holds": "the claim can guide a choice",
    "does not hold": "expect the opposite of the claim",
    "not decidable": "these seeds neither support nor contradict the claim",
}
_VERDICTS = tuple(_SAYS)


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions(RunSelection):
    """Which claims of the papers hold in evaluated runs.

    Each claim is judged on each dataset by the 95 % interval over training seeds. A claim without
    runs is listed as not measured.

    Args:
        results: Files results.csv of 'lit-offrl compare --output', folders with these, or CSV files
            like them: scores and metrics of runs whose store or records are elsewhere.
        claims: YAML file of claims; without it, those of the papers of DVF, ACD and LDCQ.
        output: Markdown file to be written; without it, the page is printed.
    """

    results: list[str] = field(default_factory=list)
    claims: Path | None = None
    output: Path | None = None

    @property
    def selects(self) -> bool:
        """Whether runs of MLflow or of records are named."""
        return bool(self.experiment or self.filter or self.parent or self.records)


def main(argv: Sequence[str]) -> int:
    """Print the page, or write it, and return 0."""
    epilog = (
        f"Without --experiment, --filter, --records and --results: MLflow's {default_experiment()}."
    )
    options = parse(ClaimsOptions, argv, "claims", epilog)
    if options.output is not None:
        is_page = partial(begins, start=f"{_TITLE}\n".encode())
        require_replaceable(options.output, "page of claims", is_page, [options.claims])
    from lit_offrl.evaluation.scored import read_results, without_repeats
    from lit_offrl.experiments.claims import OF_THE_PAPERS, judge, read_claims

    claims = read_claims(options.claims or OF_THE_PAPERS)
    runs = read_results(options.results)
    if options.selects or not options.results:
        runs += _selected(claims, options)
    runs = without_repeats(runs)
    judged = [(claim, judge(claim, claims, runs)) for claim in claims.claims]
    command = redacted(command_line(["claims", *argv]))
    page = "\n".join([*_page(judged, command, sum(run.is_evaluated for run in runs)), ""])
    if options.output is None:
        print(page)
        return 0
    write_whole(options.output, page)
    print(f"written: {options.output}")
    return 0


def _selected(claims: Claims, options: ClaimsOptions) -> list[ScoredRun]:
    """Return the runs of records and MLflow, and those of MLflow with each metric.

    Raises:
        ConfigError: There is no such store or experiment.
        EvaluationError: A record cannot be read, or no run has a score or a metric of the claims.
    """
    from lit_offrl.evaluation.scored import measured, scored

    found: list[ScoredRun] = []
    stored = replace(options, records=[])
    for name in claims.metrics if stored.selects or not options.records else ():
        with suppress(EvaluationError):  # no run has it
            found += (measured(run, name) for run in stored.find_offline(name).runs)
    try:
        return [*map(scored, options.find().runs), *found]
    except EvaluationError:  # no run was evaluated, or a record cannot be read
        if options.records or not found:
            raise
        return found


def _page(judged: Sequence[tuple[Claim, list[Finding]]], command: str, runs: int) -> Iterator[str]:
    yield _TITLE
    yield ""
    yield f"This page says which claims of the papers hold in {runs} evaluated runs."
    yield ""
    yield f"```bash\n{command}\n```"
    yield ""
    yield (
        "The page is the output of this command. Each claim is judged on each dataset, and against "
        "each rival that it names. A row of a claim's table is one such judgement, and the first "
        "table counts them. The excess says by how much the side that the claim favours is ahead, "
        "in points of the score or of the metric. If the claim is that a score rises with an "
        "option, the excess is the rise of the fitted line from the option's smallest value to its "
        "largest, with the values spaced evenly. The 95 % interval of the excess is over training "
        "seeds: Student's, or Welch's where different trainings are compared. The claim *holds* if "
        "the whole interval is above 0, and *does not hold* if the whole interval is below 0. "
        "Otherwise it is *not decidable* with these seeds. The budget is the number of optimiser "
        "steps as a share of the paper's, where both are known. Numbers in brackets are the scores "
        "of the seeds, in order. `lit-offrl docs claims` describes the command."
    )
    yield ""
    yield f"| Paper | Claim | {' | '.join(each.capitalize() for each in _VERDICTS)} |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for claim, findings in judged:
        counts = [sum(one.verdict == each for one in findings) for each in _VERDICTS]
        cells = " | ".join(map(str, counts)) if findings else "not measured | | "
        yield f"| {claim.paper}, {claim.where} | {claim.says} | {cells} |"
    yield ""
    yield (
        f"{_MEANING} a claim that holds here is a reason to prefer what it favours on data like "
        "these. A claim that is not decidable is a reason neither for nor against a method; only "
        "more seeds can tell."
    )
    for paper, group in groupby(judged, key=lambda pair: pair[0].paper):
        yield f"\n## {paper}"
        for claim, findings in group:
            yield from _section(claim, findings)


def _section(claim: Claim, findings: Sequence[Finding]) -> Iterator[str]:
    yield f"\n**{claim.says}** ({claim.where})"
    yield ""
    if claim.published:
        yield f"Reported in the paper: {claim.published}."
        yield ""
    if not findings:
        yield "Not measured in these runs."
        return
    yield "| Dataset | Scores | Excess | 95 % | Budget | Verdict |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    digits = 3 if claim.metric is not None else 1
    for one in findings:
        excess, low, high = one.excess
        interval = f"{low:.{digits}f} … {high:.{digits}f}" if math.isfinite(low) else "–"
        budget = f"{one.budget:.1%}" if math.isfinite(one.budget) else "–"
        yield (
            f"| {one.dataset} | {one.numbers} | {excess:.{digits}f} | {interval} | {budget} | "
            f"{one.verdict} |"
        )
    yield ""
    yield f"{_MEANING} {_meaning(findings)}"


def _meaning(findings: Sequence[Finding]) -> str:
    """Say in a sentence where a claim can be relied on, and with which budget."""
    rows = Counter(one.dataset for one in findings)
    parts = []
    for verdict, says in _SAYS.items():
        found = Counter(one.dataset for one in findings if one.verdict == verdict)
        named = [
            name if count == rows[name] else f"{name} ({count} of {rows[name]} rows)"
            for name, count in found.items()
        ]
        if named:
            parts.append(f"{says} on {', '.join(named)}")
    least = min((one.budget for one in findings if math.isfinite(one.budget)), default=1.0)
    budget = f". The smallest budget is {least:.1%} of the paper's steps" if least < 1 else ""
    return f"{'; '.join(parts)}{budget}."
