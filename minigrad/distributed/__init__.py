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
`MINIGRAD_PATIENCE` sets the seconds without a sign of life after which a rank counts as lost (60).
"""

from minigrad.distributed.mpi import world
from minigrad.distributed.worlds import World

__all__ = ["World", "world"]
