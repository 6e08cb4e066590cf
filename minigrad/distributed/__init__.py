"""Training on several processes and machines, with the bits of one process.

    mpiexec -n 4 python train.py

`Trainer` deals the micro-batches of each step to the ranks, and all of them make the same step. In
a script, `world()` says which rank this is:

    if minigrad.distributed.world().rank == 0:
        print(trainer.history)

A sum of floats depends on the order of its additions, so gradients are added in the order of a tree
that only the number of micro-batches decides (`minigrad.distributed.tree`). A random number depends
on the step and the micro-batch (`minigrad.training.streams`). So the result depends on the data,
`batch_size` and `accumulation_steps`, and not on the number of ranks.

It needs an MPI and mpi4py: `pip install "minigrad-lora[distributed]" mpich`. The variable
`MINIGRAD_PATIENCE` sets the seconds without a sign of life after which a rank counts as lost (60),
and all end. While MPI starts, ranks wait five times as long for each other.
"""

from functools import cache

from minigrad.distributed.launcher import launched, tell_children
from minigrad.distributed.worlds import World

__all__ = ["World", "world"]

tell_children()


@cache
def world() -> World:
    """Return the ranks that an MPI launcher has started, or a world of this process alone.

    `mpiexec -n 4 python train.py` starts four. The first call waits for all of them; `import
    minigrad` does not start MPI.

    Raises:
        RuntimeError: if a launcher has started several processes, and they cannot talk.
        ValueError: if they run other code or other instructions, or `MINIGRAD_PATIENCE` is no
            positive number.
    """
    launch = launched()
    if launch.size == 1:
        return World()
    from minigrad.distributed.mpi import MPIWorld  # which is needed below a launcher only

    return MPIWorld(launch, world.cache_clear)
