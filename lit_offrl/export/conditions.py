"""Choices that last for several decisions, under a condition of an ONNX graph.

A trace knows no conditions: it has ``Where(due, chosen, held)``, and makes the choice in each step.
What only the choice needs is moved into the branch of an ``If`` here, so that it is computed only
in steps in which one of the environments is due. The other branch gives a 0 that nothing looks at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lit_offrl.common.extras import needed


def under_conditions(model: Any, choices: Iterable[tuple[str, str]]) -> None:
    """Move what choices need into branches of conditions, and take them off the graph's outputs.

    Args:
        model: The ``ModelProto``, which is changed.
        choices: Names of the outputs that say where choices are due (E,), and of these (E, …).
    """
    onnx = needed("onnx", "export", "the format onnx")
    graph = model.graph
    pairs = list(choices)
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in graph.output}
    outputs = [one for one in graph.output if not any(one.name in pair for pair in pairs)]
    del graph.output[:]
    graph.output.extend(outputs)
    for due, chosen in pairs:
        maker = {name: node for node in graph.node for name in node.output}
        others = _needed([one.name for one in outputs] + [due], maker, without=chosen)
        apart = _needed([chosen], maker, without=None) - others
        branch = [node for node in graph.node if id(node) in apart]
        kept, place = [], None
        for node in graph.node:
            if id(node) not in apart:
                kept.append(node)
            if chosen in node.output:
                place = len(kept)
        assert place is not None  # the choice is an output
        condition = _condition(onnx, due, chosen, branch, ranks[chosen])
        nodes = [*kept[:place], *condition, *kept[place:]]
        copies = [_copy(onnx, node) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _needed(names: list[str], maker: dict[str, Any], without: str | None) -> set[int]:
    """Return ids of the nodes that values are made by, none of which is behind ``without``."""
    found: set[int] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        node = maker.get(name)
        if node is None or id(node) in found or name == without:
            continue
        found.add(id(node))
        waiting += [*node.input]
        for attribute in node.attribute:
            waiting += [one for inner in attribute.g.node for one in inner.input]
    return found


def _condition(onnx: Any, due: str, chosen: str, branch: list[Any], rank: int) -> list[Any]:
    """Return nodes that make a choice by a branch, if it is due anywhere."""
    make, types = onnx.helper, onnx.TensorProto
    copies = [_copy(onnx, node) for node in branch]
    inner = f"{chosen}_made"
    for node in copies:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = inner if name == chosen else name
    shape = [None] * rank
    then = make.make_graph(
        copies, f"{chosen}_anew", [], [make.make_tensor_value_info(inner, types.FLOAT, shape)]
    )
    nothing = make.make_tensor(f"{chosen}_nothing", types.FLOAT, [1] * rank, [0.0])
    other = make.make_graph(
        [make.make_node("Constant", [], [f"{chosen}_held"], value=nothing)],
        f"{chosen}_as_it_is",
        [],
        [make.make_tensor_value_info(f"{chosen}_held", types.FLOAT, shape)],
    )
    count, any_due = f"{due}_number", f"{due}_anywhere"
    return [
        make.make_node("Cast", [due], [f"{due}_float"], to=types.FLOAT),
        make.make_node("ReduceMax", [f"{due}_float"], [count], keepdims=0),
        make.make_node("Cast", [count], [any_due], to=types.BOOL),
        make.make_node("If", [any_due], [chosen], then_branch=then, else_branch=other),
    ]


def _copy(onnx: Any, node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
