"""What is attacked: `python -m tests.chaos.training CHECKPOINT` trains on, to the end.

A further argument is the seconds that each step takes longer. It also trains on up to 4 ranks of
`mpiexec`, of which each prints the digest of the weights.

The model has a softmax and dropout, so the bits depend on the state of a generator as well.
"""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad import nn, optim
from minigrad.training import Trainer

EPOCHS, WIDTH = 8, 6


class Gate(nn.Module):
    """A linear layer behind a gate, softmax(W x) * x, with dropout."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.gate, self.last = nn.Linear(WIDTH, WIDTH, rng=rng), nn.Linear(WIDTH, 1, rng=rng)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.last(self.dropout(mg.softmax(self.gate(x), -1) * x))


def main(checkpoint, seconds=0.0):
    mg.manual_seed(3)
    model, draw = Gate(), np.random.default_rng(1).standard_normal
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    options = {"checkpoint": checkpoint, "checkpoint_every": 2, "progress": False}
    sizes = {"batch_size": 2, "accumulation_steps": 4}
    options["on_step"] = lambda trainer: time.sleep(float(seconds))
    trainer = Trainer(model, optimizer, mg.mse, **sizes, **options)
    if Path(checkpoint).exists():
        trainer.load(checkpoint)
    print("begun", flush=True)
    x, y = draw((48, WIDTH)).astype(np.float32), draw((48, 1)).astype(np.float32)
    if left := EPOCHS - len(trainer.history):  # none if it was killed after its last checkpoint
        trainer.fit((x, y), epochs=left)
    weights = b"".join(value.tobytes() for value in model.state_dict().values())
    print(hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
