"""Children of a fork that are killed at random instants do not stop their parent.

The parent runs in a process of its own under a time limit. It forks a child that shows bars, trains
and merges without end, kills it after some random milliseconds, and then trains, saves and merges
itself. The seed of each round is printed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import seeds

ROUNDS = 40
SECONDS = 240  # much more than the work takes, which is some ten

PARENT = """
import os, random, signal, sys, tempfile, time
import numpy as np
import lora, tqdm
from minigrad import mse, nn, optim
from minigrad.progress import progress_bar
from minigrad.training import Trainer

x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)

def work(folder, progress):
    model = nn.MLP([4, 8, 4], rng=np.random.default_rng(0))
    lora.attach(model, lora.LoRAConfig(2), rng=np.random.default_rng(1), progress=progress)
    optimizer = optim.SGD(model.trainable_parameters(), lr=0.01)
    Trainer(model, optimizer, mse, batch_size=8, progress=progress).fit((x, x), epochs=2)
    lora.save(model, folder, progress=progress)
    lora.merge(model, progress=progress)
    for _ in progress_bar(range(50), what="w", unit="u", shown=progress, in_files=True, delay=0):
        list(tqdm.tqdm(range(3), file=sys.stderr))  # a bar of the user, with tqdm's own lock

with tempfile.TemporaryDirectory() as folder:
    work(folder, True)
    for seed in map(int, sys.argv[1:]):
        print("seed", seed, flush=True)
        child = os.fork()
        if not child:
            while True:
                work(f"{folder}/child", True)
        time.sleep(random.Random(seed).uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for progress in (False, True):
            model = nn.MLP([4, 8, 4], rng=np.random.default_rng(0))
            lora.attach(model, lora.LoRAConfig(2), progress=progress)
            optimizer = optim.SGD(model.trainable_parameters(), lr=0.01)
            Trainer(model, optimizer, mse, batch_size=8, progress=progress).fit((x, x), epochs=1)
            lora.save(model, f"{folder}/parent", progress=progress)
            lora.merge(model, progress=progress)
print("done")
"""


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_killed_child_does_not_stop_its_parent():
    numbers = map(str, seeds(ROUNDS))
    python = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PARENT, *numbers]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    try:
        ran = subprocess.run(
            python, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        seen = (error.stdout or b"").decode().strip()
        pytest.fail(f"the parent still waits after {SECONDS} s: {seen[-200:]}")
    print(ran.stdout)
    assert ran.stdout.endswith("done\n"), ran.stderr[-2000:]
