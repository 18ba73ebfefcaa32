"""``lit-offrl serve`` under load: many clients at once, beside the bare decision."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.made_up import ACTION_DIM, OBSERVATION_DIM
from lit_offrl.common.policy import RewardPolicy
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules import BCModule, DecisionTransformerModule, DQLModule
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import load_module

_START_SECONDS = 120.0
_EQUAL = 1e-5  # actions that differ by no more are the same: rows are added up in other orders
_ALONE = "import lit_offrl.serving.app as pages; pages._MOST_ROWS = 1; "
_BOUNDS = ([-1.0] * ACTION_DIM, [1.0] * ACTION_DIM)

POLICIES: Mapping[str, Callable[[], OfflineModule]] = {
    "BC": lambda: BCModule(OBSERVATION_DIM, ACTION_DIM, *_BOUNDS),
    "Decision Transformer": lambda: DecisionTransformerModule(
        OBSERVATION_DIM, ACTION_DIM, *_BOUNDS, target_return=1000.0
    ),
    "DQL": lambda: DQLModule(OBSERVATION_DIM, ACTION_DIM, *_BOUNDS),
}
"""Untrained, of the defaults' sizes: memoryless, with a memory for each client, and dear."""
_DRAWS = ("DQL",)  # whose actions no one can foretell


@dataclass(frozen=True)
class ServingResult:
    """One server under load.

    Attributes:
        policy: What acts.
        together: Whether requests that wait are answered by one call.
        clients: Number of clients that ask at once, each again when it has its answer.
        requests: Number of requests, of one observation each.
        decision_seconds: Median processor time of the bare decision for one observation.
        requests_per_second: Of all clients.
        p50_seconds: Median from a request to its answer.
        p99_seconds: Of 100 requests, the slowest but one.
        processor_seconds: The server's processor time for a request, which other work on the
            machine moves less; NaN where the system does not tell.
        lost: Number of requests without an answer.
        wrong: Number of actions that are not those of the policy; None where it draws them.
    """

    policy: str
    together: bool
    clients: int
    requests: int
    decision_seconds: float
    requests_per_second: float
    p50_seconds: float
    p99_seconds: float
    processor_seconds: float
    lost: int
    wrong: int | None


def run_serving(
    *,
    seconds: float = 8.0,
    clients: Sequence[int] = (1, 32),
    policies: Sequence[str] = tuple(POLICIES),
    seed: int = 0,
) -> Iterator[ServingResult]:
    """Serve policies on the loopback interface, each by a process of its own, and ask them.

    Args:
        seconds: Of asking, by each number of clients.
        clients: Numbers of clients that ask at once.
        policies: Names of those of ``POLICIES`` that are served.
        seed: Of weights and observations.
    """
    with tempfile.TemporaryDirectory() as name:
        for policy in policies:
            torch.manual_seed(seed)
            path = _save(POLICIES[policy](), Path(name) / f"{policy}.ckpt")
            module = load_module(path)
            decision = _decision_seconds(module, seed)
            remembers = isinstance(module.policy(), RewardPolicy)
            for together in (True,) if remembers else (True, False):
                with _served(path, together) as (port, process):
                    for number in clients:
                        before = _processor_seconds(process)
                        found = asyncio.run(_ask(port, number, seconds, remembers, seed))
                        spent = _processor_seconds(process) - before
                        took = np.concatenate([each.seconds for each in found])
                        yield ServingResult(
                            policy=policy,
                            together=together and not remembers,
                            clients=number,
                            requests=sum(len(each.observations) for each in found),
                            decision_seconds=decision,
                            requests_per_second=len(took) / max(each.taken for each in found),
                            p50_seconds=float(np.quantile(took, 0.5)),
                            p99_seconds=float(np.quantile(took, 0.99)),
                            processor_seconds=spent / len(took),
                            lost=sum(len(each.observations) - len(each.actions) for each in found),
                            wrong=None if policy in _DRAWS else _wrong(module, found),
                        )


def serving_table(results: Sequence[ServingResult]) -> Table:
    """One line a server and number of clients."""
    heads = ("policy", "by one call", "clients", "requests/s", "p50 ms", "p99 ms", "CPU ms")
    table = Table(
        *(*heads, "bare ms", "lost", "wrong"), title="lit-offrl serve, one observation a request"
    )
    for r in results:
        times = (r.p50_seconds, r.p99_seconds, r.processor_seconds, r.decision_seconds)
        table.add_row(
            r.policy,
            "yes" if r.together else "no",
            str(r.clients),
            f"{r.requests_per_second:,.0f}",
            *(f"{1e3 * each:.3g}" for each in times),
            str(r.lost),
            "drawn" if r.wrong is None else str(r.wrong),
        )
    table.caption = "by one call: requests that wait are answered together\n"
    table.caption += "CPU: of the server for a request; bare: processor time of a decision alone\n"
    table.caption += "wrong: actions that are not the policy's own for that client, of all requests"
    return table


@dataclass
class _Client:
    """What a client asked, was answered, and waited for."""

    observations: list[np.ndarray]
    rewards: list[float]
    actions: list[list[float]]
    seconds: list[float]
    taken: float = 0.0


def _save(module: OfflineModule, path: Path) -> Path:
    module.spec = DatasetSpec("made up", OBSERVATION_DIM, ACTION_DIM)
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
    }
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def _decision_seconds(module: OfflineModule, seed: int, repeats: int = 200) -> float:
    policy = module.policy()
    rows = np.random.default_rng(seed).normal(size=(repeats, 1, OBSERVATION_DIM))
    took = []
    for row in rows.astype(np.float32):
        begun = time.process_time()
        policy.act(row)
        took.append(time.process_time() - begun)
    return float(np.median(took))


@contextlib.contextmanager
def _served(path: Path, together: bool) -> Iterator[tuple[int, int]]:
    """Serve a checkpoint in a process of its own; give the port and the process's number."""
    code = f"import sys; {'' if together else _ALONE}from lit_offrl.__main__ import main; "
    argv = ["serve", "--ckpt_path", str(path), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.exit(main())", *argv],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"127\.0\.0\.1:(\d+)", line)
        if address is None:
            raise RuntimeError(f"the server did not begin: {line}")
        yield int(address[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_START_SECONDS)
        process.stdout.close()


def _processor_seconds(process: int) -> float:
    """Return the processor time of a process until now."""
    file = Path(f"/proc/{process}/stat")
    if not file.is_file():
        return math.nan
    fields = file.read_text().rpartition(")")[2].split()  # from the third on
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _ask(port: int, number: int, seconds: float, remembers: bool, seed: int) -> list[_Client]:
    return list(
        await asyncio.gather(
            *(_client(port, name, seconds, remembers, seed) for name in range(number))
        )
    )


async def _client(port: int, name: int, seconds: float, remembers: bool, seed: int) -> _Client:
    """Ask again and again, over one connection, until the time is over."""
    random, found = np.random.default_rng((seed, name)), _Client([], [], [], [])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.perf_counter()
    try:
        while (sent := time.perf_counter()) - begun < seconds:
            row = random.normal(size=OBSERVATION_DIM).astype(np.float32)
            reward = float(np.float32(random.normal()))
            body: dict[str, Any] = {"observations": [row.tolist()], "client": f"client-{name}"}
            if not found.observations:
                body["reset"] = True
            elif remembers:
                body["rewards"] = [reward]
            found.observations.append(row)
            found.rewards.append(reward)
            text = json.dumps(body).encode()
            head = "POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = re.search(r"content-length: (\d+)", answer)
            assert size is not None
            content = json.loads(await reader.readexactly(int(size[1])))
            found.seconds.append(time.perf_counter() - sent)
            if " 200 " in answer.partition("\r\n")[0]:
                found.actions.append(content["actions"][0])
        found.taken = time.perf_counter() - begun
    finally:
        writer.close()
    return found


def _wrong(module: OfflineModule, clients: Sequence[_Client]) -> int:
    """Count the actions that a policy of its own would not have taken for a client."""
    policy = module.policy()
    if not isinstance(policy, RewardPolicy):
        rows = np.array([row for each in clients for row in each.observations])
        actions = np.array([action for each in clients for action in each.actions])
        return int((np.abs(policy.act(rows) - actions).max(1) > _EQUAL).sum())
    steps, wrong = min(len(each.actions) for each in clients), 0
    for step in range(steps):  # all clients in step, a row each
        if step > 0:
            policy.earn(np.array([each.rewards[step] for each in clients], np.float32))
        acted = policy.act(np.array([each.observations[step] for each in clients]))
        actions = np.array([each.actions[step] for each in clients])
        wrong += int((np.abs(acted - actions).max(1) > _EQUAL).sum())
    return wrong
