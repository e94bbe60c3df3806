"""How this process was started: alone, or by torchrun as one of several. Imports no torch, so that a refused flag is
said at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """
    Attributes:
        rank: this process among the `world` of them; local_rank: among those of this machine.
        machines: how many there are.
        torchrun: whether torchrun started it, which hands every signal that it gets to all that it started.
        restarts: how often it was started anew after a process ended badly; max_restarts: how often it may be.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    machines: int = 1
    torchrun: bool = False
    restarts: int = 0
    max_restarts: int = 0


def launch() -> Launch:
    """What the environment says: torchrun's variables, which other launchers set, too."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world, local_rank = (int(os.environ.get(name, 0)) for name in names)
    restarts, most = (int(os.environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    machines = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    return Launch(rank, world, local_rank, machines, "TORCHELASTIC_RUN_ID" in os.environ, restarts, most)
