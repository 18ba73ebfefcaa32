"""Views: how rows become batches, by tensor indexing alone.

A view is a small object for a config, ``FutureStates(gamma=0.99)``. Bound to a dataset and a device
it holds the columns as tensors there, knows the valid rows, and turns row numbers and uniform
random numbers into a NamedTuple. It draws nothing itself, so a batch is a pure function.

``Transitions`` makes single steps, ``AdvantageLabelled`` those with stored advantages, ``Outcomes``
those with what became of their episodes, ``FutureStates`` states with a later one, ``Snippets``
pieces of H steps, ``Windows`` such with the episode's return, ``Contexts`` such with the return
that followed each step. No batch holds rows of two episodes in one of its entries.
"""

from lit_offrl.datasets.views.base import BoundView, View
from lit_offrl.datasets.views.contexts import ContextBatch, Contexts
from lit_offrl.datasets.views.future import FutureStateBatch, FutureStates
from lit_offrl.datasets.views.labelled import AdvantageBatch, AdvantageLabelled
from lit_offrl.datasets.views.outcomes import OutcomeBatch, Outcomes
from lit_offrl.datasets.views.snippets import SnippetBatch, Snippets
from lit_offrl.datasets.views.transitions import TransitionBatch, Transitions
from lit_offrl.datasets.views.windows import WindowBatch, Windows

__all__ = [
    "AdvantageBatch",
    "AdvantageLabelled",
    "BoundView",
    "ContextBatch",
    "Contexts",
    "FutureStateBatch",
    "FutureStates",
    "OutcomeBatch",
    "Outcomes",
    "SnippetBatch",
    "Snippets",
    "TransitionBatch",
    "Transitions",
    "View",
    "WindowBatch",
    "Windows",
]
