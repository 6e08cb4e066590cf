"""Mistakes in trainings on several ranks, each of which must be an error on all of them.

    mpiexec -n 2 python -m tests.minigrad.distributed.mishaps FOLDER

prints a line of JSON for each rank: what became of each case.
"""

import errno
import itertools
import json
import math
import os
import random
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lora
import minigrad
from minigrad import Trainer, nn, optim
from minigrad.distributed import world

RANK = world().rank
FOLDER = Path(sys.argv[-1])
X = np.random.default_rng(0).standard_normal((24, 4), np.float32)


class Noise(nn.Module):
    """Adds noise from a generator of its own."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def forward(self, x):
        return x + self.rng.standard_normal(x.shape).astype(np.float32)


class FreshNoise(nn.Module):
    """Adds noise from a generator that each call makes anew, with a seed of the system."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def forward(self, x):
        self.rng = np.random.default_rng()
        return x + self.rng.standard_normal(x.shape).astype(np.float32)


class Transposed(nn.Module):
    def forward(self, x):
        return minigrad.stack([x, 2 * x, 3 * x]).transpose((1, 0, 2))


class Applied(nn.Module):
    def __init__(self, function):
        self.function = function

    def forward(self, x):
        self.function = self.function or minigrad.tanh
        return self.function(x)


class RunningMean(nn.Module):
    def __init__(self):
        self.mean = np.zeros(4, np.float32)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().numpy().mean(0)
        return x


class NoiseOfAllCode(nn.Module):
    """Adds noise from a generator that all code shares."""

    def __init__(self, draw):
        self.draw = draw

    def forward(self, x):
        return x + float(self.draw())


class NoiseOfTwo(nn.Module):
    """Adds noise from two generators with the same state."""

    def __init__(self):
        self.rng = np.random.default_rng(3)
        self.other = np.random.Generator(self.rng.bit_generator)

    def forward(self, x):
        scale = self.other.random()
        return x + (scale * self.rng.standard_normal(x.shape)).astype(np.float32)


class NoiseInAList(nn.Module):
    """Adds noise from generators in a list."""

    def __init__(self):
        self.parts = [{"rng": np.random.default_rng(3)}]

    def forward(self, x):
        return x + self.parts[0]["rng"].standard_normal(x.shape).astype(np.float32)


class Counter(nn.Module):
    def __init__(self):
        self.calls, self.parts = 0, {"means": [np.zeros(4)]}

    def forward(self, x):
        self.calls += 1
        self.parts["means"][0] = x.detach().numpy().mean(0)
        return x


class MeanAsNumber(nn.Module):
    """Subtracts a running mean, which is a number of numpy."""

    def __init__(self):
        self.mean = np.float32(0)

    def forward(self, x):
        self.mean += np.float32(0.1) * x.detach().numpy().mean()
        return x - float(self.mean)


class FirstCall(nn.Module):
    """Deletes a mark in its first call."""

    def __init__(self):
        self.mark = 2.0

    def forward(self, x):
        return x * vars(self).pop("mark", 1.0)


class RelativeLoss(nn.Module):
    """Divides the loss by its running mean."""

    def __init__(self):
        self.mean = np.ones(1)

    def forward(self, x, y):
        loss = minigrad.mse(x, y)
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        return loss / self.mean.item()


class Teacher(nn.Module):
    """Compares predictions with those of another network."""

    def __init__(self, seed):
        self.net = model(seed)

    def loss(self, x, y):
        return minigrad.mse(x, self.net(minigrad.tensor(y)).detach())


class Observer(nn.Module):
    """Records the largest input, after it is turned on or from a call of some number on."""

    def __init__(self, first=math.inf):
        self.on, self.largest, self.first, self.calls = False, 0.0, first, itertools.count(1)

    def forward(self, x):
        if self.on or next(self.calls) >= self.first:
            self.largest = max(self.largest, x.max().item())
        return x


class AtRandom(Sequence):
    """Micro-batches that are drawn when they are asked for, of any number."""

    def __init__(self):
        self.rng = np.random.default_rng(9)

    def __len__(self):
        return 6

    def __getitem__(self, i):
        x = self.rng.standard_normal((2, 4)).astype(np.float32)
        return minigrad.tensor(x), X[2 * i : 2 * i + 2]


def model(seed=0, *others):
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(4, 8, rng=rng), nn.Linear(8, 4, rng=rng), *others)


def trainer(net=None, parameters=None, **options):
    net = model() if net is None else net
    optimizer = optim.SGD(parameters or net.trainable_parameters(), lr=0.01)
    usual = {"loss": minigrad.mse, "batch_size": 4, "accumulation_steps": 2, "progress": False}
    usual["rng"] = np.random.default_rng(1)
    return Trainer(net, optimizer, **{**usual, **options})


def fit(made, x=X, steps=4):
    made.fit((x, x), steps=steps)
    return made


def with_other_data():
    fit(trainer(), X + RANK)


def with_other_seeds():
    fit(trainer(rng=np.random.default_rng(RANK)))


def with_other_options():
    fit(trainer(clip_norm=1.0 + RANK))


def with_another_loss():
    fit(trainer(loss=minigrad.l1 if RANK else minigrad.mse))


def with_other_options_of_the_loss():
    fit(trainer(loss=nn.HuberLoss(delta=1.0 + RANK)))


def with_another_teacher_in_the_loss():
    fit(trainer(loss=Teacher(RANK).loss))


def with_another_teacher_in_an_evaluation():
    trainer(loss=Teacher(RANK).loss).evaluate((X, X))


def with_another_frozen_base():
    net = model(RANK)
    net[0].freeze()
    fit(trainer(net))


def with_another_base_in_nf4():
    net = model(RANK)
    lora.quantize(net, progress=False)
    lora.attach(net, lora.LoRAConfig(rank=2), rng=np.random.default_rng(0))
    fit(trainer(net))


def with_another_schedule():
    net = model()
    optimizer = optim.SGD(net.trainable_parameters(), lr=0.01)
    schedule = optim.WarmupCosineLR(optimizer, 2 + RANK, 20)
    options = {"batch_size": 4, "accumulation_steps": 2, "progress": RANK == 0}
    fit(Trainer(net, optimizer, minigrad.mse, scheduler=schedule, **options))


def with_other_parameters():
    fit(trainer(model(0, nn.Linear(4, 4 + 0 * RANK, bias=RANK == 0))))


def with_another_activation():
    fit(trainer(model(0, nn.Tanh() if RANK else nn.ReLU())))


def with_another_function():
    fit(trainer(model(0, Applied(minigrad.tanh if RANK else minigrad.relu))))


def with_another_share_of_dropout():
    fit(trainer(model(0, nn.Dropout(0.1 + 0.1 * RANK))))


def with_another_metric():
    fit(trainer(metrics=[lambda output, target: 0.0] if RANK else []))


def with_fewer_rows():
    fit(trainer(), X[:2] if RANK else X)


def with_another_lr():
    made = trainer()
    made.optimizer.param_groups[0]["lr"] *= 1 + RANK
    fit(made)


def with_layers_in_another_order():
    net = nn.Module()
    for name in ("ab", "ba")[RANK]:
        setattr(net, name, nn.Linear(4, 4, rng=np.random.default_rng(0)))
    fit(trainer(net))


def with_another_order_of_parameters():
    """As of a set, whose order is another one in each process."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    fit(trainer(net, list(net.parameters())[:: 1 - 2 * RANK]))


def with_a_layer_that_rank_1_freezes():
    fit(trainer(on_epoch=lambda t: RANK == 1 and t.model[0].freeze()))


def with_seeds_on_one_rank():
    if RANK == 1:
        minigrad.manual_seed(0)
    try:
        fit(trainer())
    finally:
        minigrad.manual_seed(0)


def with_draws_in_an_evaluation():
    trainer(model(0, Noise(1))).predict(X)


def with_a_new_generator_in_an_evaluation():
    trainer(model(0, FreshNoise())).predict(X)


def with_a_generator_in_the_loss():
    rng = np.random.default_rng(0)
    fit(trainer(loss=lambda x, y: minigrad.mse(minigrad.dropout(x, 0.5, rng=rng), y)))


def with_a_folder_as_checkpoint():
    trainer().load(FOLDER)


def with_too_few_micro_batches_in_a_step():
    fit(trainer(accumulation_steps=1))


def with_too_few_micro_batches_in_all():
    fit(trainer(), X[:4])


def with_a_checkpoint_that_only_rank_1_sees():
    file = FOLDER / f"{RANK}.safetensors"
    file.write_bytes(b"x") if RANK else None
    trainer().load(FOLDER / "1.safetensors" if RANK else FOLDER / "there is none")


def with_a_damaged_checkpoint():
    if RANK == 0:
        (FOLDER / "damaged").write_bytes(b"x" * 100)
    trainer().load(FOLDER / "damaged")


def with_no_folder_for_the_checkpoint():
    trainer(checkpoint=FOLDER / "nowhere" / "file")


def with_running_means():
    fit(trainer(model(0, RunningMean())))


def with_a_loss_that_is_not_finite_on_rank_1():
    x = X.copy()
    x[20] = math.inf  # a row of one micro-batch
    fit(trainer(), x, steps=3)


def with_draws_on_one_rank():
    def draw(_):
        if RANK == 1:
            minigrad.rand(3)

    minigrad.manual_seed(0)
    try:
        fit(trainer(model(0, nn.Dropout(0.5)), on_step=draw))
    finally:
        minigrad.manual_seed(0)


def with_draws_from_the_order_on_one_rank():
    rng = np.random.default_rng(1)
    fit(trainer(rng=rng, on_epoch=lambda _: rng.random(RANK)))


def with_weights_that_rank_1_changes():
    made = trainer()

    def change(_):
        if RANK == 1:
            made.model[0].weight.data *= 2

    made.on_step = [change]
    fit(made)


def with_an_lr_that_rank_1_changes():
    made = trainer()
    made.on_epoch = [lambda _: made.optimizer.param_groups[0].update(lr=0.01 + RANK)]
    fit(made)


def with_other_weights_in_a_prediction():
    trainer(model(RANK)).predict(X)


def with_other_data_in_a_prediction():
    trainer().predict(X + RANK)


def with_another_target_in_an_evaluation():
    trainer().evaluate((X, X + RANK))


def with_other_micro_batches_in_an_evaluation():
    trainer().evaluate([(minigrad.tensor(X + RANK), X)])


def with_other_micro_batches():
    batches = [(minigrad.tensor(X[i : i + 4]), X[i : i + 4]) for i in range(0, 24, 4)]
    batches[-1] = (batches[-1][0] + RANK, batches[-1][1])
    trainer().fit(batches, epochs=1)


def with_draws_from_numpy():
    fit(trainer(model(0, NoiseOfAllCode(np.random.rand))))


def with_draws_from_python():
    fit(trainer(model(0, NoiseOfAllCode(random.random))))


def with_a_counter():
    fit(trainer(model(0, Counter())))


def with_a_running_mean_as_number():
    fit(trainer(model(0, MeanAsNumber())))


def with_an_attribute_that_the_first_call_deletes():
    fit(trainer(model(0, FirstCall())))


def with_a_loss_that_changes():
    fit(trainer(loss=RelativeLoss()))


def with_an_observer_that_a_callback_turns_on():
    net = model(0, Observer())
    fit(trainer(net, on_epoch=lambda _: setattr(net[2], "on", True)), steps=7)


def with_an_observer_that_begins_late():
    fit(trainer(model(0, Observer(first=3))))


def with_other_numbers_of_epochs():
    trainer().fit((X, X), epochs=3 + RANK)


def with_a_full_disk_on_rank_0():
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    minigrad.manual_seed(0)
    before = os.fsync
    try:
        os.fsync = write if RANK == 0 else before
        fit(trainer(checkpoint=FOLDER / "full"), steps=3)
    finally:
        os.fsync = before


CASES = {name: case for name, case in list(vars().items()) if name.startswith("with_")}


def stopped_on_one_rank():
    """Stop on rank 1 alone after two steps; return how many there were."""
    made = trainer(
        on_step=lambda t: len(t.history.steps) == 2 and RANK == 1 and t.stop(at_once=True)
    )
    return len(fit(made, steps=6).history.steps)


def begun_without_seeds():
    """Train a model that each rank has drawn by itself; return its weights and records."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    made = fit(trainer(net, rng=None))
    return [p.data.tolist() for p in net.parameters()] + [s["loss"] for s in made.history.steps]


def with_noise_of_its_own():
    """Train a module that draws from a generator of its own; return the losses."""
    made = fit(trainer(model(0, Noise(5))))
    return [step["loss"] for step in made.history.steps]


def with_noise_in_a_list():
    made = fit(trainer(model(0, NoiseInAList())))
    return [step["loss"] for step in made.history.steps]


def with_noise_of_two_generators():
    made = fit(trainer(model(0, NoiseOfTwo())))
    return [step["loss"] for step in made.history.steps]


def with_a_function_that_the_first_call_makes():
    made = fit(trainer(model(0, Applied(None))))
    return [step["loss"] for step in made.history.steps]


def with_micro_batches_made_at_random():
    """Train on other data in each epoch, of which each rank has a part; return the losses."""
    made = trainer()
    made.fit(AtRandom(), epochs=2, validation=AtRandom())
    losses = [step["loss"] for step in made.history.steps]
    return losses + [epoch["validation_loss"] for epoch in made.history.epochs]


def called_on_every_rank():
    """Return how often functions were called, and what was predicted and evaluated."""
    seen = []
    made = trainer(on_epoch=lambda t: seen.append(t.history.epochs[-1]["loss"]))
    made.fit((X, X), epochs=2)
    return [seen, made.predict(X[:10]).tolist(), made.evaluate((X, X)), made.evaluate([(X, X)] * 3)]


def predictions_in_memory():
    """Return the order in memory of values that a model has transposed.

    numpy adds in this order, so it matters to a metric.
    """
    return trainer(model(0, Transposed())).predict(X).strides


def averaged_without_seeds():
    """Train a model that each rank has drawn by itself, with averages; return these."""
    net = nn.Linear(4, 4)
    ema = optim.EMA(net)
    fit(trainer(net, ema=ema))
    return [average.tolist() for average in ema.state_dict()["averages"].values()]


def values_of_rank_0():
    """Return what rank 0 alone has made: an array, and a number."""
    return [
        world().on_first(lambda: np.full(2, RANK), "make").tolist(),
        world().on_first(lambda: {"rank": RANK}, "make"),
    ]


def loaded_without_space():
    """Load a checkpoint where rank 1 can write no file; return its weights, and those before."""
    made = trainer(checkpoint=FOLDER / "run")
    fit(made, steps=3)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if RANK else usual[0], usual[1]))
    try:
        other = trainer()
        other.load(FOLDER / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    return [[p.tolist() for p in each.model.parameters()] for each in (other, made)]


ALIKE = (
    with_noise_of_its_own,
    with_noise_in_a_list,
    with_noise_of_two_generators,
    with_a_function_that_the_first_call_makes,
    with_micro_batches_made_at_random,
    called_on_every_rank,
    predictions_in_memory,
)  # which return what one process has
RESULTS = (
    averaged_without_seeds,
    loaded_without_space,
    values_of_rank_0,
    stopped_on_one_rank,
    begun_without_seeds,
    *ALIKE,
)


def main():
    found = {function.__name__: function() for function in RESULTS}
    for name, case in CASES.items():
        try:
            case()
            found[name] = "nothing"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
