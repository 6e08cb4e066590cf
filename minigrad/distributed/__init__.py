"""Distributed training on several processes and machines, with the same bits as on one process.

    mpiexec -n 4 python train.py

`Trainer` distributes the micro-batches of each step to the ranks, and all ranks make the same step.
In a script, `world()` says which rank this is:

    if minigrad.distributed.world().rank == 0:
        print(trainer.history)

A sum of floats depends on the order of its additions. So gradients are added in the order of a tree
that depends only on the number of micro-batches (`minigrad.distributed.tree`). A random number
depends on the step and the micro-batch (`minigrad.training.streams`). So the result depends on the
data, `batch_size` and `accumulation_steps`, but not on the number of ranks. Ranks compare rows when
`fit` begins, and given micro-batches in each step; a callback that changes rows in place must
change them in the same way on all ranks.

It needs MPI and mpi4py: `pip install "minigrad-lora[distributed]" mpich`. If a rank sends no
heartbeat for `MINIGRAD_PATIENCE` seconds (by default 60), it counts as lost, and all ranks end.
While MPI starts, ranks wait five times as long for each other.
"""

from functools import cache

from minigrad import renamed
from minigrad.distributed.worlds import World
from minigrad.launcher import launched

__all__ = ["World", "world"]


@cache
def world() -> World:
    """Return the world of all ranks that an MPI launcher has started, or of this process only.

    `mpiexec -n 4 python train.py` starts four. The first call waits for all of them; `import
    minigrad` does not start MPI.

    Raises:
        RuntimeError: if a launcher has started several processes, but they cannot communicate,
            because mpi4py is missing or belongs to another MPI, or the launcher is torchrun; or if
            a launcher has started notebooks.
        ValueError: if ranks run different code or use different instructions, or
            `MINIGRAD_PATIENCE` is not a positive number.
    """
    launch = launched()
    if launch.size == 1:
        return World()
    from minigrad.distributed.mpi import MPIWorld  # only a launcher needs it

    return MPIWorld(launch, world.cache_clear)


renamed.hint_names(__name__)
