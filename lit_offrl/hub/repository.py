"""A repository of the hub by its name, and what the hub says where it fails."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_offrl.common.errors import ConfigError, install, reason, root
from lit_offrl.tracking.store import redacted

_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,99}", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """``ORG/NAME``, or ``ORG/NAME@REVISION``: a commit, branch or tag."""

    name: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"


def repository(text: str, revisions: bool = True) -> Repository:
    """Read a repository's name.

    Args:
        text: ``ORG/NAME[@REVISION]``.
        revisions: Whether it may name a revision.

    Raises:
        ConfigError: It is no such name.
    """
    name, at, revision = text.partition("@")
    right = _NAME.fullmatch(name) and not re.search(r"\.\.|--", name)
    if at:
        right = right and revisions and _REVISION.fullmatch(revision) and ".." not in revision
    if not right:
        form = "ORG/NAME@REVISION or ORG/NAME" if revisions else "ORG/NAME"
        raise ConfigError(
            f"'{' '.join(text.split())[:200]}' names no repository of the hub: give {form}."
        )
    return Repository(name, revision or "main")


def hub() -> Any:
    """Return the package huggingface_hub, which then says nothing but by its errors.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"the hub needs the package huggingface_hub: {install('hub')}.") from None
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


def endpoint() -> str | None:
    """Return the address in ``$HF_ENDPOINT``; None for the hub's own."""
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def refusals(where: Repository, file: str = "") -> Iterator[None]:
    """Say in a line why the hub does not do what the block asks for.

    Args:
        where: The repository.
        file: The file that the block asks for, if it is one.

    Raises:
        ConfigError: Whatever the hub, the network or the package has raised.
    """
    hub()  # it may not be installed
    from huggingface_hub import errors

    try:
        yield
    except ConfigError:
        raise
    except errors.RevisionNotFoundError:
        raise ConfigError(f"hub:{where}: has no revision '{where.revision}'.") from None
    except errors.EntryNotFoundError:
        raise ConfigError(
            f"hub:{where}: has no {file or 'such file'}: was it pushed by 'lit-offrl hub push'?"
        ) from None
    except errors.GatedRepoError:
        raise ConfigError(
            f"hub:{where}: its owners let in whom they know: ask them on its page."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"hub:{where}: there is no such repository, or it is private and you are not known: "
            "check the name, and log in by: hf auth login."
        ) from None
    except Exception as error:  # HTTP's, the network's, the package's own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            line = f"you may not do that ({status}): log in by hf auth login, or ask the owners."
        elif _is_offline(error):
            line = f"the hub cannot be reached ({_said(root(error))}): try again."
        else:
            line = f"the hub fails ({_said(error)}): try again."
        raise ConfigError(f"hub:{where}: {line}") from None


def _is_offline(error: BaseException) -> bool:
    kinds = {kind.__name__ for each in (error, root(error)) for kind in type(each).__mro__}
    return bool({"TransportError", "OfflineModeIsEnabled", "ConnectionError"} & kinds)


def _said(error: BaseException) -> str:
    """Return an error's text without the user's token."""
    text, token = redacted(reason(error, 160, named=True)), hub().get_token()
    return text.replace(token, "***") if token else text
