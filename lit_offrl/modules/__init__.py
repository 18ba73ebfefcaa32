"""Methods, one a file."""

from lit_offrl.modules.acd import ACDModule
from lit_offrl.modules.acg import ACGModule
from lit_offrl.modules.awr import AWRModule
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.bc import BCModule
from lit_offrl.modules.bcq import BCQModule
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.cql import CQLModule
from lit_offrl.modules.decision_diffuser import DecisionDiffuserModule
from lit_offrl.modules.decision_transformer import DecisionTransformerModule
from lit_offrl.modules.diffuser import DiffuserModule
from lit_offrl.modules.diffusion_bc import DiffusionBCModule
from lit_offrl.modules.dql import DQLModule
from lit_offrl.modules.dvf import DVFModule
from lit_offrl.modules.fql import FQLModule
from lit_offrl.modules.idql import IDQLModule
from lit_offrl.modules.ifql import IFQLModule
from lit_offrl.modules.iql import IQLModule
from lit_offrl.modules.ldcq.images import ImageVAEModule
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module
from lit_offrl.modules.ldcq.stage2 import LDCQStage2Module
from lit_offrl.modules.ldcq.stage3 import LDCQStage3Module
from lit_offrl.modules.rebrac import ReBRACModule
from lit_offrl.modules.td3bc import TD3BCModule

__all__ = [
    "ACDModule",
    "ACGModule",
    "AWRModule",
    "BCModule",
    "BCQModule",
    "CQLModule",
    "DQLModule",
    "DVFModule",
    "DecisionDiffuserModule",
    "DecisionTransformerModule",
    "DiffuserModule",
    "DiffusionBCModule",
    "FQLModule",
    "IDQLModule",
    "IFQLModule",
    "IQLModule",
    "ImageVAEModule",
    "LDCQStage1Module",
    "LDCQStage2Module",
    "LDCQStage3Module",
    "OfflineModule",
    "ReBRACModule",
    "TD3BCModule",
    "load_module",
]
