"""``lit-offrl serve``: answer observations with a checkpoint's actions over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lit_offrl import __version__
from lit_offrl.commands.evaluate import split_policy_options
from lit_offrl.commands.options import parse
from lit_offrl.commands.parsing import positive, seed_number
from lit_offrl.common.device import CPU, device
from lit_offrl.common.errors import ConfigError, EvaluationError, install
from lit_offrl.common.files import file_sha256
from lit_offrl.common.quiet import say
from lit_offrl.common.ranges import require_fields
from lit_offrl.tracking.references import Checkpoint

if TYPE_CHECKING:
    from lit_offrl.common.policy import Policy


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes.

    Raises:
        Interrupted: One has.
    """
    rest, policy_options = split_policy_options(argv)
    options = parse(
        ServeOptions,
        rest,
        "serve",
        epilog="--policy.OPTION VALUE sets an option of the module's policy.",
    )
    try:
        import starlette  # noqa: F401  (the application needs it, which takes seconds to import)

        from lit_offrl.serving.server import Server, address_of, open_socket, read_token
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: {install('serve')}") from None
    if (options.ckpt_path is None) == (options.policy is None):
        raise ConfigError(
            "serve takes one of --ckpt_path, a checkpoint, and --policy, an exported policy."
        )
    token = read_token(options.token_file)
    with open_socket(options.host, options.port, token) as bound, contextlib.ExitStack() as held:
        from lit_offrl.serving.app import App  # torch and Lightning: seconds
        from lit_offrl.serving.clients import Clients

        if options.policy is not None:
            make, facts = _exported(options, policy_options)
        else:
            make, facts = _checkpoint(options, policy_options, held)
        clients = Clients(make, options.max_clients, options.idle_seconds)
        facts |= {
            "version": __version__,
            "remembers": clients.remembers,
            "takes_goals": clients.takes_goals,
            "takes_rewards": clients.takes_rewards,
            "seed": options.seed,
        }
        width = int(facts["observation_dim"])
        app = App(clients, width, facts, token=token, max_body=options.max_body)
        whom = "for whoever has the token" if token else "without a token"
        say(
            f"{facts['method']} of {options.policy or options.ckpt_path} acts at "
            f"{address_of(bound)}/act, {whom}; SIGINT or SIGTERM ends it"
        )
        try:
            Server(app.asgi).serve_until_stopped(bound)
        finally:
            say(f"{app.answered} requests for actions answered")
    return 0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Answer observations with a checkpoint's actions over HTTP, until SIGINT or SIGTERM.

    POST /act takes a batch of observations as JSON; GET /metadata says what acts, GET /health that
    it does. `lit-offrl docs serving` has examples.

    Args:
        ckpt_path: Checkpoint of 'fit' that acts: a path, runs:/ID, models:/NAME@ALIAS or
            hub:ORG/NAME.
        policy: Policy that 'export' has written, an .onnx, to act through onnxruntime in the place
            of a checkpoint.
        port: Port to listen at; 0 takes a free one.
        host: Address to listen at. Any that other machines reach needs a token.
        token_file: File with the token that requests must name as 'Authorization: Bearer TOKEN'.
            (default: that of $LIT_OFFRL_SERVE_TOKEN, if any)
        seed: Seed of what the policy draws.
        device: Device, such as cpu, cuda or cuda:1.
        max_clients: Number of clients whose memory is kept, where the policy remembers.
        idle_seconds: Seconds after which a client that asks for nothing is forgotten.
        max_body: Number of bytes that a request's body may have.
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
    """

    ckpt_path: Checkpoint | None = None
    policy: Path | None = None
    port: Annotated[int, "[0, 65535]"] = 8000
    host: str = "127.0.0.1"
    token_file: Path | None = None
    seed: Annotated[int, seed_number] = 0
    device: Annotated[str, device] = CPU
    max_clients: Annotated[int, positive] = 64
    idle_seconds: Annotated[float, "(0, inf)"] = 600.0
    max_body: Annotated[int, positive] = 2**20
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        require_fields(self)


def _checkpoint(
    options: ServeOptions, policy_options: dict[str, Any], held: contextlib.ExitStack
) -> tuple[Callable[[], Policy], dict[str, Any]]:
    """Return what makes a checkpoint's policy, and facts; draws are seeded until the stack ends."""
    from lit_offrl.evaluation.evaluate import acting, require_policy_options
    from lit_offrl.modules.checkpoints import load_module

    path = options.ckpt_path
    assert path is not None  # main saw to it
    module = load_module(path, options.device)
    if module.spec is None:
        raise EvaluationError(f"{path}: was never trained on a dataset, so it cannot act.")
    require_policy_options(type(module), policy_options)
    held.enter_context(acting(module, options.seed))
    return lambda: module.policy(**policy_options), {
        "method": type(module).__name__,
        "checkpoint": path.name,
        "checkpoint_sha256": file_sha256(path),
        "observation_dim": module.observation_dim,
        "action_dim": module.spec.action_dim,
        "policy_options": policy_options,
        "known_policy_options": list(module.policy_options()),
        "device": str(module.device),
        "spec": module.spec.to_dict(),
    }


def _exported(
    options: ServeOptions, policy_options: dict[str, Any]
) -> tuple[Callable[[], Policy], dict[str, Any]]:
    """Return what makes an exported policy, and facts."""
    from lit_offrl.export import load_onnx

    path = options.policy
    assert path is not None  # main saw to it
    if policy_options:
        name = next(iter(policy_options))
        raise ConfigError(
            f"--policy.{name} is an option of a checkpoint's policy: an exported one has the"
            " options that it was exported with; give them to 'lit-offrl export'."
        )
    if options.device != CPU:
        raise ConfigError("--device is for checkpoints: an exported policy runs on the CPU.")
    loaded = load_onnx(path, options.seed)
    facts = loaded.facts
    return loaded.another, {
        "method": facts.method,
        "checkpoint": facts.checkpoint,
        "checkpoint_sha256": facts.checkpoint_sha256,
        "policy": path.name,
        "policy_sha256": file_sha256(path),
        "observation_dim": facts.inputs["observations"],
        "action_dim": facts.outputs["actions"],
        "policy_options": dict(facts.policy_options),
        "device": CPU,
        "spec": dict(facts.spec),
    }
