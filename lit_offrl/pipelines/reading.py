"""A pipeline's file; every complaint is one line that names the file and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.common.configs import read_yaml
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS, lies_in
from lit_offrl.jobs.reading import NAME, SUFFIXES, FileReader
from lit_offrl.pipelines.plan import SECTIONS, Evaluation, Pipeline, Stage, checked

KEYS = ("base", "name", "seed", "dataset", "config", "options", "stages", "evaluate", "evaluations")
_STAGE_KEYS = ("config", "options", "checkpoints")
# How deep mappings of a file are merged with those below it; what lies deeper is replaced.
_DEPTHS = {"options": 1, "evaluate": 1, "evaluations": 2, "stages": 3}
_RESERVED = (*SECTIONS, "evaluate", "seed_everything", "config", "ckpt_path")


class PipelineReader(FileReader):
    """Checks parts of a pipeline's file."""

    owner = "the pipeline"


def read_pipeline(paths: Sequence[Path]) -> Pipeline:
    """Read a file, and others laid over it; paths in each are relative to it.

    Args:
        paths: files; what later ones say wins, key by key.

    Raises:
        ConfigError: one line that names the file and the key.
    """
    given: dict[str, Any] = {}
    for path in paths:
        given = _over(given, _load(path, ()))
    reader = PipelineReader(paths[-1])
    name = given.get("name", paths[0].stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise reader.wrong("name", name, "letters, digits, '_', '-' and '.'")
    seed = given.get("seed", 0)
    if type(seed) is not int or not lies_in(SEEDS, seed):
        raise reader.wrong("seed", seed, f"a whole number in {SEEDS}")
    stages = _stages(reader, given)
    evaluations = _evaluations(reader, given, name, [stage.name for stage in stages])
    return Pipeline(name, seed, stages, evaluations)


def _stages(reader: FileReader, given: Mapping[str, Any]) -> tuple[Stage, ...]:
    parts = {k: v for k, v in (given.get("stages") or {}).items() if v is not None}
    if not parts:
        raise reader.wrong("stages", given.get("stages"), "a mapping of stages in their order")
    common = dict(given.get("options") or {})
    if "dataset" in given:
        common["data.init_args.dataset"] = given["dataset"]
    overlays = tuple(map(Path, given.get("config") or []))
    stages: dict[str, Stage] = {}
    for name, part in parts.items():
        key = f"stages.{name}"
        _require_name(reader, key, name)
        files = (*map(Path, part.get("config") or []), *overlays)
        if not files:
            raise ConfigError(f"{reader.path}: {key}: has no 'config'; give a file of fit's.")
        checkpoints = part.get("checkpoints") or {}
        for option, source in checkpoints.items():
            _require_earlier(reader, f"{key}.checkpoints.{option}", source, list(stages), parts)
        options = {**common, **(part.get("options") or {})}
        stages[name] = checked(Stage(name, files, options, checkpoints), reader)
    return tuple(stages.values())


def _require_name(reader: FileReader, key: str, name: Any) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or "." in name:
        raise reader.wrong(key, name, "a name of letters, digits, '_' and '-'")
    if name in _RESERVED:
        raise ConfigError(f"{reader.path}: {key}: options begin with '{name}': call it otherwise.")


def _require_earlier(
    reader: FileReader, key: str, source: Any, earlier: list[str], all_stages: Mapping[str, Any]
) -> None:
    if not isinstance(source, str):
        raise reader.wrong(key, source, "the name of a stage above")
    if source in earlier:
        return
    if source in all_stages:
        raise ConfigError(
            f"{reader.path}: {key}: stage '{source}' does not come before this one: a checkpoint"
            " can only be taken of a stage above."
        )
    known = f" There are {', '.join(all_stages)}."
    hint = nearest(source, all_stages) or known
    raise ConfigError(f"{reader.path}: {key}: there is no stage '{source}'.{hint}")


def _evaluations(
    reader: FileReader, given: Mapping[str, Any], name: str, stages: list[str]
) -> tuple[Evaluation, ...]:
    common = given.get("evaluate") or {}
    parts = given.get("evaluations")
    parts = {name.replace(".", "-"): {}} if parts is None else parts
    evaluations = []
    for label, part in parts.items():
        if part is None:
            continue
        key = f"evaluations.{label}"
        _require_name(reader, key, label)
        if label in stages:
            raise ConfigError(f"{reader.path}: {key}: a stage is called so: call it otherwise.")
        options = {**common, **part}
        stage = options.pop("stage", stages[-1])
        if stage not in stages:
            hint = nearest(str(stage), stages) or f" There are {', '.join(stages)}."
            raise ConfigError(f"{reader.path}: {key}.stage: there is no stage '{stage}'.{hint}")
        evaluations.append(Evaluation(label, stage, options))
    return tuple(evaluations)


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read one file over its base, with absolute paths in it."""
    reader = PipelineReader(path)
    given = read_yaml(path)
    reader.known(given, "the file", KEYS)
    given = dict(given)
    if given.get("config") is not None:
        given["config"] = [*map(str, reader.files("config", given["config"]))]
    given["options"] = reader.options("options", given.get("options") or {})
    given["evaluate"] = given.get("evaluate") or {}
    reader.evaluate("evaluate", given["evaluate"])
    if "dataset" in given:
        name = reader.text("dataset", given["dataset"])
        local = name.endswith(SUFFIXES) and ":" not in name
        given["dataset"] = str(reader.file("dataset", name)) if local else name
    given["stages"] = {
        name: None if part is None else _stage_part(reader, f"stages.{name}", part)
        for name, part in _mapping(reader, "stages", given.get("stages")).items()
    }
    if given.get("evaluations") is not None:
        for label, part in _mapping(reader, "evaluations", given["evaluations"]).items():
            if part is not None:
                reader.evaluate(f"evaluations.{label}", part, ("stage",))
    if given.get("base") is None:
        return given
    base = reader.files("base", given.pop("base"))[0]
    chain = (*above, path.resolve())
    if base in chain:
        raise ConfigError(f"{path}: base: {base} is built on this file: name another one.")
    return _over(_load(base, chain), given)


def _stage_part(reader: FileReader, key: str, part: Any) -> dict[str, Any]:
    reader.known(part, key, _STAGE_KEYS)
    made = dict(part)
    if made.get("config") is not None:
        made["config"] = [*map(str, reader.files(f"{key}.config", made["config"]))]
    made["options"] = reader.options(f"{key}.options", made.get("options") or {})
    made["checkpoints"] = reader.options(f"{key}.checkpoints", made.get("checkpoints") or {})
    return made


def _mapping(reader: FileReader, key: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise reader.wrong(key, given, "a mapping by name")
    return given or {}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one file's content over another's."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merge(below.get(key), value, _DEPTHS.get(key, 0))
    stages = below.get("stages", {})
    for name, part in above.get("stages", {}).items():
        if name in stages and stages[name] is None and part and "config" not in part:
            merged["stages"][name] = None  # an overlay for all pipelines must not bring it back
    return merged


def _merge(below: Any, above: Any, depth: int) -> Any:
    if depth == 0 or not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{k: _merge(below.get(k), v, depth - 1) for k, v in above.items()}}
