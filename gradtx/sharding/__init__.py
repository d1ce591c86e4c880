"""Optimizers on several devices: where states lie, and who does the work of a step.

`distributed` lets each device of a mesh step whole matrices of Muon, Shampoo and their relatives.
"""

from gradtx.inspection.shardings import state_shardings
from gradtx.sharding.distributed import distributed
from gradtx.sharding.zero import zero

__all__ = ["distributed", "state_shardings", "zero"]
