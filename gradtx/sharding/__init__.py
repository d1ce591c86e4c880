"""Optimizers on several devices: where states lie, and who does the work of a step.

`zero` keeps a part of every state on each device, and does that part of the update there;
`state_shardings` tells where the state of any transformation lies; `distributed` lets each device
take the steps of whole matrices of Muon, Shampoo and their relatives.
"""

from __future__ import annotations

from gradtx.inspection.shardings import state_shardings
from gradtx.sharding.matrices import distributed
from gradtx.sharding.splitting import zero

__all__ = ["distributed", "state_shardings", "zero"]
