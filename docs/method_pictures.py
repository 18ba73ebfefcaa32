"""Draws the pictures of docs/methods/*.md: how data, networks and actions hang together.

One style for all, as SVG with a white ground, in the colours of the library's figures. Shapes tell
the boxes apart without colour, too: a box is data (angular, filled), a trained network (thick and
round), a number that is computed (dashed) or what acts (black). A full arrow says what goes in, a
dashed one what trains.

    python docs/method_pictures.py            # all
    python docs/method_pictures.py iql acd    # some
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lit_offrl.figures import COLOURS

_BLUE, _ORANGE = COLOURS[:2]
_PALE = tuple(0.35 * part + 0.65 for part in to_rgb(COLOURS[4]))  # a tint of the light blue
OUTPUT = Path(__file__).parent / "images" / "methods"
_WIDE, _HIGH = 1.75, 0.95  # inches from one column, and one row, to the next
_BOX, _LINE = 1.3, 0.17  # inches: a box's width, and its height for each line
_KINDS: dict[str, dict[str, Any]] = {
    "data": {"boxstyle": "square,pad=0.08", "facecolor": _PALE, "linewidth": 0.8},
    "net": {"boxstyle": "round,pad=0.08", "edgecolor": _BLUE, "linewidth": 2.2},
    "number": {"boxstyle": "round,pad=0.08", "edgecolor": _ORANGE, "linestyle": (0, (4, 2))},
    "acts": {"boxstyle": "round,pad=0.08", "facecolor": "black"},
}

# Boxes: name, column, row (from the top), kind, text. Arrows: from > to, or from ~ to for training;
# what follows a colon stands beside the arrow.
PICTURES: dict[str, str] = {
    "legend": """
        data 0 0 data logged data
        net 1.4 0 net trained network
        number 2.4 0 number computed|number
        acts 3.8 0 acts acts in the|environment
        data > net: input
        net > number
        number ~ acts: trains
    """,
    "dvf": """
        pairs 0 0 data states s, s'|Δt steps apart
        rows 0 2 data rewards of|labelled rows
        rho 1 0 net occupancy|ρ(s' | s, Δt, φ)
        samples 2 0 number n sampled|future states s'
        reward 1 2 net reward r(s, a)
        value 2 1 number V(s) = r(s, π) +|γ/(1−γ) · mean r(s', π)
        target 3 1 number Q or return|r + γ V(s')
        policy 3 2 acts policy π(a | s)
        pairs ~ rho
        rows ~ reward
        rho > samples
        samples > value
        reward > value
        value > target
        target ~ policy
    """,
    "acd": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0 net IQL critics|Q and V
        adv 2 0 number advantage|A = Q − V
        denoiser 2 1 net diffusion model|ε(aᵗ, t, s, A or ∅)
        guided 3 1 number guided sample|at A = 0
        best 3 0 number ACD-F: best of N|by Q
        action 4 0.5 acts action
        rows ~ critics
        critics > adv
        adv ~ denoiser: label
        rows ~ denoiser
        denoiser > guided
        guided > action
        guided > best
        best > action
    """,
    "ldcq": """
        snip 0 0 data snippet of H|steps (s, a)
        enc 1 0 net 1: encoder|q(z | snippet)
        latent 2 0 number latent skill z
        dec 3 0 net 1: decoder|π(a | s, z)
        prior 1 1 net 2: diffusion|prior p(z | s)
        cand 2 1 number n candidate|latents
        q 2 2 net 3: Q(s, z)
        best 3 1 number best latent|by Q
        rows 0 2 data rewards of|H steps
        act 4 0 acts H actions
        state 0 1 data state s|(LDGC: and goal)
        snip > enc
        enc > latent
        latent > dec
        dec > act
        latent ~ prior
        state > prior
        prior > cand
        cand > best
        q > best
        rows ~ q
        best > dec
    """,
    "bc": """
        rows 0 0 data observation s,|action a
        policy 1 0 net policy π(a | s)
        act 2 0 acts mean action
        rows ~ policy
        policy > act
    """,
    "iql": """
        rows 0 0.5 data transitions|(s, a, r, s')
        q 1 0 net critics Q₁, Q₂
        v 1 1 net value V|expectile τ
        adv 2 0.5 number A = min Q̄ − V
        weight 3 0.5 number weight|exp(β A)
        policy 4 0.5 acts policy π(a | s)
        rows ~ q
        rows ~ v
        q ~ v: min Q̄
        q > adv
        v > adv
        adv > weight
        weight ~ policy
    """,
    "awr": """
        rows 0 0 data transitions|(s, a, r, s')
        v 1 0 net behaviour's|value V
        adv 2 0 number advantage A|of the action
        weight 3 0 number weight|exp(β A)
        policy 4 0 acts policy π(a | s)
        rows ~ v
        v > adv
        adv > weight
        weight ~ policy
    """,
    "acg": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0 net IQL critics|Q and V
        adv 2 0 number advantage|A = Q − V
        policy 2 1 net Gaussian|π(a | s, A)
        act 3 1 acts mean action|at A = 0
        rows ~ critics
        critics > adv
        adv > policy: input
        rows ~ policy
        policy > act
    """,
    "diffusion_bc": """
        rows 0 0 data observation s,|action a
        noisy 1 0 number a with noise|of step t
        net 2 0 net denoiser|ε(aᵗ, t, s)
        chain 3 0 number T steps from|noise to a
        act 4 0 acts sampled|action
        rows > noisy
        noisy ~ net
        net > chain
        chain > act
    """,
    "idql": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0 net IQL critics|Q and V
        bc 1 1 net diffusion model|of a given s
        cand 2 1 number N candidate|actions
        best 3 0.5 acts best by min Q̄
        rows ~ critics
        rows ~ bc
        bc > cand
        cand > best
        critics > best
    """,
    "dql": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0 net critics Q₁, Q₂
        bc 1 1 net diffusion policy
        sample 2 1 number sample, through|all T steps
        q 2 0 number Q(s, sample)
        act 3 1 acts one of N, drawn|by exp(Q)
        rows ~ critics
        rows ~ bc
        bc > sample
        critics > q
        sample > q
        q ~ bc: gradient
        sample > act
    """,
    "cql": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0.5 net critics Q₁, Q₂
        up 2 0 number Q of the data's|actions: pushed up
        down 2 1 number Q of drawn|actions: pushed down
        policy 3 0.5 acts policy climbs|min Q + entropy
        rows ~ critics
        up ~ critics
        down ~ critics
        up > policy
        down > policy
    """,
    "td3bc": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0 net critics Q₁, Q₂
        clone 1 1 number distance to the|data's action
        loss 2 0.5 number distance − λ Q
        policy 3 0.5 acts policy π(s)
        rows ~ critics
        rows > clone
        critics > loss
        clone > loss
        loss ~ policy
    """,
    "rebrac": """
        rows 0 0.5 data transitions with|next actions
        target 1 0 number target: min Q̄ −|β₂ ‖π(s') − a'‖²
        critics 2 0 net critics Q₁, Q₂
        clone 1 1 number β₁ ‖π(s) − a‖²
        loss 3 1 number distance − Q
        policy 4 0.5 acts policy π(s)
        rows > target
        target ~ critics
        rows > clone
        clone > loss
        critics > loss
        loss ~ policy
    """,
    "fql": """
        rows 0 0.5 data transitions|(s, a, r, s')
        flow 1 1 net flow of the|data's actions
        critics 1 0 net critics Q₁, Q₂
        near 2 1 number distance to flow's|action of the same z
        q 2 0 number Q(s, μ(s, z))
        policy 3 0.5 acts one-step|policy μ(s, z)
        rows ~ flow
        rows ~ critics
        flow > near
        critics > q
        near ~ policy
        q ~ policy
    """,
    "ifql": """
        rows 0 0.5 data transitions|(s, a, r, s')
        critics 1 0 net IQL critics|Q and V
        flow 1 1 net flow of a|given s
        cand 2 1 number N candidate|actions
        best 3 0.5 acts best by min Q
        rows ~ critics
        rows ~ flow
        flow > cand
        cand > best
        critics > best
    """,
    "bcq": """
        rows 0 0.5 data transitions|(s, a, r, s')
        vae 1 1 net VAE of the|data's actions
        critics 1 0 net critics Q₁, Q₂
        cand 2 1 number n imitated|actions
        perturb 3 1 net perturbation ξ|at most Φ
        best 4 0.5 acts best by Q₁
        rows ~ vae
        rows ~ critics
        vae > cand
        cand > perturb
        perturb > best
        critics > best
    """,
    "decision_transformer": """
        past 0 0 data K steps of|(R̂, s, a)
        net 1 0 net causal|transformer
        act 2 0 acts next action
        ask 0 1 number return still to|be earned R̂
        reward 2 1 number reward received
        past > net
        net > act
        ask > past
        act > reward
        reward > ask: R̂ − r
    """,
    "diffuser": """
        rows 0 0.5 data windows of H|steps (a, s)
        plan 1 0 net diffusion model|of windows
        value 1 1 net return of a|noisy window, V
        guided 2 0.5 number N plans, moved|along ∇V
        best 3 0.5 number best plan|by V
        act 4 0.5 acts its first action
        rows ~ plan
        rows ~ value
        plan > guided
        value > guided
        guided > best
        best > act
    """,
    "decision_diffuser": """
        rows 0 0.5 data windows of H|states, actions
        plan 1 0 net diffusion model|of states, return R
        inv 2 1 net inverse dynamics|f(s, s')
        guided 2 0 number plan of states|for a high R
        act 3 0.5 acts action from|s to planned s'
        rows ~ plan
        rows ~ inv
        plan > guided
        guided > act
        inv > act
    """,
}


def draw(text: str) -> plt.Figure:
    """Draw a picture of a description in the form of ``PICTURES``."""
    lines = [line.strip() for line in text.strip().splitlines()]
    boxes = [line.split(None, 4) for line in lines if not {">", "~"} & {*line.split()[1:2]}]
    columns = [float(box[1]) for box in boxes]
    rows = [float(box[2]) for box in boxes]
    width, height = _WIDE * max(columns) + _BOX + 0.5, _HIGH * max(rows) + 0.85
    figure = plt.figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    patches = {}
    for name, column, row, kind, said in boxes:
        # " | " is a condition, as in p(z | s), and a stroke without spaces begins a line
        written = [part.replace("\0", " | ") for part in said.replace(" | ", "\0").split("|")]
        x, y = 0.25 + _BOX / 2 + _WIDE * float(column), 0.42 + _HIGH * float(row)
        tall = _LINE * len(written) + 0.1
        style = {"facecolor": "white", "edgecolor": "black", "linewidth": 1.2, **_KINDS[kind]}
        patch = FancyBboxPatch((x - _BOX / 2, y - tall / 2), _BOX, tall, zorder=2, **style)
        patches[name] = axes.add_patch(patch), (x, y)
        colour = "white" if kind == "acts" else "black"
        axes.text(x, y, "\n".join(written), color=colour, size=8, ha="center", va="center")
    for line in lines:
        parts, _, beside = line.partition(":")
        words = parts.split()
        if len(words) != 3 or words[1] not in (">", "~"):
            continue
        (first, start), (last, end) = patches[words[0]], patches[words[2]]
        axes.add_patch(
            FancyArrowPatch(
                start, end, patchA=first, patchB=last, arrowstyle="-|>", mutation_scale=9,
                shrinkA=1, shrinkB=2, linewidth=1.0, color="black", zorder=1,
                linestyle="-" if words[1] == ">" else (0, (3, 2)),
            )
        )  # fmt: skip
        if beside:
            middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            label = {"size": 7, "style": "italic", "ha": "center", "va": "center", "zorder": 3}
            axes.text(*middle, beside.strip(), bbox=ground, **label)
    return figure


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "lit-offrl"  # the same picture has the same bytes
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        figure = draw(PICTURES[name])
        figure.savefig(OUTPUT / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
