"""A decision's graph as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_offrl.common.extras import needed
from lit_offrl.common.files import write_whole
from lit_offrl.export.conditions import under_conditions
from lit_offrl.export.facts import KEY, PolicyFacts
from lit_offrl.export.graph import Graph

OPSET = 20  # the first with Gelu


def write_onnx(graph: Graph, facts: PolicyFacts, path: Path) -> None:
    """Write an ONNX file, whole or not at all, with the facts among its metadata.

    Raises:
        ConfigError: onnxscript is not installed.
        FileError: The file cannot be written.
    """
    op = needed("onnxscript", "export", "the format onnx").opset20

    def mish(x: Any) -> Any:
        """x tanh(log(1 + eˣ)) = x n / (n + 2) with n = eˣ (eˣ + 2), and x itself above 20.

        Softplus, for which onnxruntime has no vectorised kernel, takes seven times as long.
        """
        power = op.Exp(op.Min(x, 20.0))
        n = op.Mul(power, op.Add(power, 2.0))
        return op.Mul(x, op.Div(n, op.Add(n, 2.0)))

    choices = [(f"due_{number}", f"chosen_{number}") for number in range(graph.choices)]
    names = [*graph.outputs, *(name for pair in choices for name in pair)]
    with _quiet():
        made = torch.onnx.export(
            graph.program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[*graph.inputs],
            output_names=names,
            custom_translation_table={torch.ops.aten.mish.default: mish},
        )
        assert made is not None
        made.model.metadata_props[KEY] = facts.to_json()
        made.model.producer_name, made.model.producer_version = KEY, facts.version
        model = made.model_proto
    _name_rows(model)
    under_conditions(model, choices)
    write_whole(path, model.SerializeToString())


def _name_rows(model: Any) -> None:
    """Call the number of rows E, as the README does, where the tracer calls it such as s95."""
    found = model.graph
    (symbol,) = {value.type.tensor_type.shape.dim[0].dim_param for value in found.input}
    for value in (*found.input, *found.output, *found.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = dim.dim_param.replace(symbol, "E")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own affairs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
