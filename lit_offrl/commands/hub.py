"""``lit-offrl hub``: push a trained policy to Hugging Face's hub, or pull one from there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import write_whole
from lit_offrl.hub.repository import Repository, endpoint, hub, refusals, repository
from lit_offrl.tracking.references import checkpoint_path

_TOKEN = "The token is huggingface_hub's own: of `hf auth login`, or of $HF_TOKEN."


def main(argv: Sequence[str]) -> int:
    """Push or pull, say what was written, and return 0."""
    options = _parser().parse_args(list(argv))
    return _push(options) if options.verb == "push" else _pull(options)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl hub",
        description="Push a trained policy to Hugging Face's hub, or pull one. `hub:ORG/NAME` "
        "stands for a checkpoint wherever one is taken. " + _TOKEN,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    push = verbs.add_parser(
        "push",
        help="Write weights, config, evaluation records and a model card to a repository.",
        description=f"Push a policy as safetensors, without the state of its training. {_TOKEN}",
    )
    add = push.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="A path, runs:/ID or models:/NAME@ALIAS.")
    add("--repo", required=True, metavar="ORG/NAME", help="The repository, made if need be.")
    add(
        "--record",
        type=Path,
        action="append",
        metavar="FILE",
        help="Evaluation record of this checkpoint; may be given again. (default: those of this "
        "checkpoint in evaluations/)",
    )
    add("--private", action="store_true", help="Make a new repository private.")
    add("--license", metavar="NAME", help="Licence of the weights, such as apache-2.0.")
    add("--message", metavar="TEXT", help="Message of the commit.")
    add(
        "--dry_run",
        type=Path,
        metavar="FOLDER",
        help="Write what would be pushed to this folder, and push nothing.",
    )
    add("--tracking_uri", metavar="URI", help="Address of the MLflow store of runs:/ and models:/.")
    pull = verbs.add_parser(
        "pull",
        help="Fetch a policy's files to a folder.",
        description="Fetch a policy. Weights and records are checked; the config is that of the "
        f"weights, without what a stranger's file may not name. {_TOKEN}",
    )
    pull.add_argument("repo", metavar="ORG/NAME[@REVISION]", help="What to fetch.")
    pull.add_argument(
        "--output", type=Path, metavar="FOLDER", help="Where to. (default: the repository's NAME)"
    )
    return parser


def _push(options: argparse.Namespace) -> int:
    where = repository(options.repo, revisions=False)
    path = checkpoint_path(options.checkpoint, options.tracking_uri)
    from lit_offrl.hub.folder import records_of, write_folder  # torch and Lightning: seconds

    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; give the path of a .ckpt file.")
    records = records_of(path) if options.record is None else options.record
    if not records:
        print("no evaluation record of this checkpoint: the card says so")
    if options.dry_run is not None:
        for written in write_folder(path, options.dry_run, where.name, records, options.license):
            print(f"wrote {written}")
        return 0
    api = hub().HfApi(endpoint=endpoint())
    with TemporaryDirectory() as name:
        folder = Path(name) / "policy"
        write_folder(path, folder, where.name, records, options.license)
        with refusals(where):
            url = api.create_repo(where.name, private=options.private or None, exist_ok=True)
            done = api.upload_folder(
                repo_id=where.name,
                folder_path=folder,
                commit_message=options.message or "A policy of lit-offrl",
            )
    print(f"pushed {url}, commit {done.oid}")
    print(f"use it: lit-offrl evaluate --ckpt_path hub:{where.name}@{done.oid}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    asked = repository(options.repo)
    from lit_offrl.cli.checkpoint import ResumeFrom  # torch and Lightning: seconds
    from lit_offrl.evaluation.record import EvaluationRecord
    from lit_offrl.hub import fetching
    from lit_offrl.modules.checkpoints import module_of, read_checkpoint

    folder: Path = options.output or Path(asked.name.partition("/")[2])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already: give another --output.")
    weights = fetching.fetch(asked, fetching.WEIGHTS)
    where = Repository(asked.name, fetching.commit_of(weights))
    saved = read_checkpoint(weights)
    module = module_of(saved, f"hub:{where}")
    config = yaml.safe_load(ResumeFrom(str(weights)).layer("fit"))
    config.get("trainer", {}).pop("logger", None)
    files: dict[str, str | bytes] = {fetching.CARD: fetching.fetch_text(where, fetching.CARD)}
    for name in fetching.record_names(where):
        text = fetching.fetch_text(where, name)
        EvaluationRecord.from_json(text)  # refuses what is none
        files[name] = text
    files[fetching.CONFIG] = yaml.safe_dump(config, sort_keys=False)
    files[fetching.WEIGHTS] = weights.read_bytes()
    for name, content in files.items():
        write_whole(folder / name, content)
        print(f"wrote {folder / name}")
    print(f"{type(module).__name__} of commit {where.revision}")
    return 0
