"""``lit-offrl models``: MLflow's registry of policies: what is in it, adding to it, aliases."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError
from lit_offrl.tracking.references import checkpoint_path, model_version, versions_of
from lit_offrl.tracking.results import add_to_run, results
from lit_offrl.tracking.runs import METRICS_OF_POLICIES, all_pages, find_run
from lit_offrl.tracking.store import STORE_HELP, open_client, refusals, require_store, store_uri

_WAY_OUT = "give another --tracking_uri."


def main(argv: Sequence[str]) -> int:
    """Do what the verb says, and return 0."""
    options = _parser().parse_args(list(argv))
    uri = store_uri(options.tracking_uri)
    require_store(uri, _WAY_OUT, made=True)
    client = open_client(uri)
    with refusals(uri, ""):
        if options.verb == "list":
            _list(client)
        elif options.verb == "register":
            _register(client, uri, options)
        else:
            found = model_version(client, uri, options.version)
            _set_alias(client, found, options.alias)
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="lit-offrl models",
        description="The registered models of an MLflow store: policies by name, with versions and"
        " aliases. Wherever a checkpoint can be given, models:/NAME@ALIAS and models:/NAME/VERSION"
        " stand for a version's, and mlflow models serve -m serves its policy.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{list,register,alias}")
    store: dict[str, Any] = {"metavar": "URI", "help": STORE_HELP}
    shown = verbs.add_parser("list", help="print names, versions, aliases and scores")
    shown.add_argument("--tracking_uri", **store)
    made = verbs.add_parser("register", help="make a run's policy a version of a model")
    text = "Run whose policy it is: ID or runs:/ID, its folder, or a checkpoint of it."
    made.add_argument("run", metavar="RUN", help=text)
    made.add_argument("--name", required=True, help="Name of the model, made if there is none.")
    made.add_argument("--alias", help="Alias of the version, taken from another that has it.")
    made.add_argument("--tracking_uri", **store)
    named = verbs.add_parser("alias", help="give a version an alias")
    named.add_argument("version", metavar="NAME/VERSION", help="Version, or NAME@ALIAS.")
    named.add_argument("alias", metavar="ALIAS", help="Alias, taken from another that has it.")
    named.add_argument("--tracking_uri", **store)
    return parser


def _list(client: Any) -> None:
    table = Table(title="Registered models")
    for name in ("model", "version", "aliases", *METRICS_OF_POLICIES, "dataset", "made", "run"):
        right = name == "version" or name in METRICS_OF_POLICIES
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for found in all_pages(client.search_registered_models):
        model = client.get_registered_model(found.name)  # what is searched for has no aliases
        for version in versions_of(client, model.name):
            aliases = [
                a for a, number in model.aliases.items() if str(number) == str(version.version)
            ]
            metrics, dataset = _scores(client, version)
            made = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000)
            cells = [model.name, str(version.version), ", ".join(aliases)]
            cells += [
                f"{metrics[name]:.1f}" if name in metrics else "–" for name in METRICS_OF_POLICIES
            ]
            cells += [dataset, f"{made:%Y-%m-%d %H:%M}", version.run_id or "–"]
            table.add_row(*map(escape, cells))
    if not table.row_count:
        print("No model is registered: lit-offrl models register RUN --name NAME.")
        return
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def _scores(client: Any, version: Any) -> tuple[dict[str, float], str]:
    id = _model_id(version)
    if id is None:
        return {}, "–"
    found = client.get_logged_model(id).metrics or ()
    dataset = next((one.dataset_name for one in found if one.dataset_name), "–")
    return {one.key: one.value for one in found}, dataset


def _model_id(version: Any) -> str | None:
    """Return the id of the logged model that a version is of, if it is of one."""
    id = str(version.source).removeprefix("models:/")
    return id if id.startswith("m-") else None


def _register(client: Any, uri: str, options: argparse.Namespace) -> None:
    run = find_run(uri, _run_id(options.run))
    model = _newest(client, run) or _made(client, uri, run)
    known = {each.name for each in all_pages(client.search_registered_models)}
    if options.name not in known:
        client.create_registered_model(options.name)
    versions = versions_of(client, options.name)
    version = next((each for each in versions if _model_id(each) == model.model_id), None)
    if version is None:
        version = client.create_model_version(
            options.name,
            f"models:/{model.model_id}",
            run_id=run.info.run_id,
            model_id=model.model_id,
            description=run.data.tags.get("mlflow.note.content"),
        )
    print(f"{version.name} version {version.version}: of the MLflow run {run.info.run_id}")
    if options.alias is not None:
        _set_alias(client, version, options.alias)
    if model.model_type == "policy":
        place = f"models:/{version.name}/{version.version}"
        print(f"serve it: mlflow models serve -m {place} --env-manager local")


def _run_id(given: str) -> str:
    """Return the id of a run that is named by it, by its folder or by a checkpoint of it."""
    path = Path(given)
    file = path / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        return given.removeprefix("runs:/")
    from lit_offrl.modules.checkpoints import mlflow_origin  # torch and Lightning: seconds

    origin = mlflow_origin(file)
    if origin is None:
        raise ConfigError(f"{given}: was not logged to MLflow, so no run has it: register a run.")
    return origin["run_id"]


def _newest(client: Any, run: Any) -> Any:
    """Return the run's latest logged model, one with a policy if there is any; None for none."""
    where = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], where)
    found = [one for one in found if str(one.status) == "READY"]
    return next(iter([*(one for one in found if one.model_type == "policy"), *found]), None)


def _made(client: Any, uri: str, run: Any) -> Any:
    """Log the model of a run that has none, from its last checkpoint."""
    from lit_offrl.modules.checkpoints import load_module
    from lit_offrl.tracking.models import logged_model

    checkpoint = checkpoint_path(f"runs:/{run.info.run_id}", uri)
    module = load_module(checkpoint)
    scored = {k: v for k, v in run.data.metrics.items() if k.startswith("eval/")}
    with TemporaryDirectory() as scratch:
        outbox = results({}, [], "")
        outbox.models.append(logged_model(module, checkpoint, Path(scratch) / "model", scored))
        add_to_run(run.info.run_id, uri, outbox)
    return _newest(client, run)


def _set_alias(client: Any, version: Any, alias: str) -> None:
    client.set_registered_model_alias(version.name, alias, str(version.version))
    print(f"models:/{version.name}@{alias} is version {version.version}")
