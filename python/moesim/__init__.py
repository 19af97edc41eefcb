"""Routing, balance losses, capacity and placement of Mixture-of-Experts layers, computed by
libmoesim: the part of moesim that decides and computes, without MPI.

    import moesim
    routing = moesim.route(logits, top_k=6, devices=8, group_limit="max", topk_group=3)
    routing.experts, routing.weights, routing.losses["expert"]
    moesim.balance_losses(logits, experts=my_choice, devices=8)
    moesim.place(load, devices=8, policy="eplb", slots_per_device=10)
    moesim.load_run("runs/mine").step_table()

docs/library.md has the arrays, the results and their shapes.
"""

from ._layer import Routing, balance_losses, route
from ._library import MoesimError, settings_keys, version
from ._place import Placement, place
from ._run import Run, load_run

__all__ = [
    "MoesimError",
    "Placement",
    "Routing",
    "Run",
    "balance_losses",
    "load_run",
    "place",
    "route",
    "settings_keys",
    "version",
]
__version__ = version()
