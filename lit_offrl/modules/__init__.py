"""Methods, one a file."""

from lit_offrl.modules.base import OfflineModule, load_module
from lit_offrl.modules.bc import BCModule
from lit_offrl.modules.cql import CQLModule
from lit_offrl.modules.dvf import DVFModule

__all__ = ["BCModule", "CQLModule", "DVFModule", "OfflineModule", "load_module"]
