"""Options of a method: kept for its checkpoint, inherited ones too, and checked."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import LightningModule

from lit_offrl.common.ranges import require_hints
from lit_offrl.common.signatures import hints_of, parameters_of


class KeepsOptions(LightningModule):
    """A LightningModule that saves its hyperparameters once, for all classes derived from it."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Keep the options for the checkpoint, as Lightning does, inherited ones among them.

        A module calls this itself, once, as it is built; a subclass need not.

        Raises:
            ConfigError: One is not what its annotation allows, see ``require_hints``.
        """
        frame = inspect.currentframe()
        options.setdefault("frame", frame.f_back if frame else None)
        super().save_hyperparameters(*args, **options)
        kind: Any = type(self)
        require_hints(hints_of(kind), self._hparams)
        known = parameters_of(kind)
        everything: Any = (self._hparams, self._hparams_initial)
        for kept in everything:
            for name in [*kept]:
                # what a class gives its base itself is no option; "_" begins Lightning's own notes
                if name not in known and not name.startswith("_"):
                    del kept[name]
