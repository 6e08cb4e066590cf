"""Damaged checkpoints of a Trainer: each is refused and changes nothing, or trains.

A mutant is made from a good file by damage to its bytes or to its tensors. Its seed is the number
of its test.
"""

import numpy as np
import pytest

from minigrad import mse, nn, optim
from minigrad.io import load_state, save_state
from minigrad.training import Trainer
from tests.chaos import seeds

X, Y = np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2), np.ones((12, 1), np.float32)


def sgd(model):
    return optim.SGD(model.trainable_parameters(), lr=0.01, momentum=0.9), {}


def adam(model):
    optimizer = optim.AdamW(model.trainable_parameters(), lr=0.01, amsgrad=True)
    schedule = optim.WarmupCosineLR(optimizer, warmup_steps=2, total_steps=40)
    return optimizer, {"scheduler": schedule, "ema": optim.EMA(model, warmup=True), "patience": 2}


def steps(model):
    optimizer = optim.Adam(model.trainable_parameters(), lr=0.01)
    twister = np.random.Generator(np.random.MT19937(3))
    return optimizer, {"scheduler": optim.StepLR(optimizer, step_size=3), "rng": twister}


def philox(model):
    optimizer, _ = sgd(model)
    return optimizer, {"rng": np.random.Generator(np.random.Philox(3)), "patience": 1}


def trainer(seed, kind):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(2, 3, rng=rng), nn.Tanh(), nn.Linear(3, 1, rng=rng))
    optimizer, options = kind(model)
    options = {"rng": np.random.default_rng(1), **options}
    return Trainer(model, optimizer, mse, batch_size=5, progress=False, **options)


def damage_bytes(path, rng):
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content)))
    kind = rng.choice(["flip", "cut", "insert", "zeros", "swap"])
    if kind == "flip":
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[start:]
    elif kind == "insert":
        content[start:start] = rng.bytes(int(rng.integers(1, 20)))
    elif kind == "zeros":
        content[start : start + 8] = bytes(8)
    else:
        content[start : start + 4] = content[start : start + 4][::-1]
    path.write_bytes(content)


def damage_tensors(path, rng):
    arrays, metadata = load_state(path)
    names = list(arrays)
    name = names[int(rng.integers(len(names)))]
    array = arrays[name]
    kind = rng.choice(["remove", "rename", "move", "shape", "dtype", "copy", "value", "part"])
    if kind == "remove":
        del arrays[name]
    elif kind == "rename":
        arrays[f"{name}{rng.choice(['x', '.0', '.', ''])}"[1:]] = arrays.pop(name)
    elif kind == "move":
        arrays[names[int(rng.integers(len(names)))]] = arrays.pop(name)
    elif kind == "shape":
        arrays[name] = array.reshape(rng.choice([1, array.size]), -1)[..., None]
    elif kind == "dtype":
        arrays[name] = array.astype(rng.choice(["f2", "f8", "i4", "u1", "?"]))
    elif kind == "copy":
        arrays[
            str(rng.choice(["", "extra", "optimizer.99.exp_avg", "optimizer.-1.step", "ema"]))
        ] = array
    elif kind == "value":
        array.flat[int(rng.integers(array.size))] = rng.choice([np.nan, np.inf, -1.0, 1e38])
    else:
        part = name.partition(".")[0]
        arrays = {n: a for n, a in arrays.items() if n.partition(".")[0] != part}
    save_state(path, arrays, metadata)


def state_of(trainer):
    """Return all that a trainer has, in a form that can be compared."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return list(map(plain, value)) if isinstance(value, (list, tuple)) else value

    return plain(trainer.state_dict())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good file of each kind of trainer."""
    files = {}
    for kind in (sgd, adam, steps, philox):
        one = trainer(0, kind)
        one.fit((X, Y), 3, validation=(X, Y))
        if kind in (sgd, philox):
            one.fit((X, Y), steps=1)  # in the middle of an epoch
        files[kind] = tmp_path_factory.mktemp(kind.__name__) / "run"
        one.save(files[kind])
    return files


@pytest.mark.full
@pytest.mark.parametrize("seed", seeds(200))
def test_a_damaged_checkpoint_is_refused_and_changes_nothing_or_trains(good, tmp_path, seed):
    print(f"seed {seed}")  # pytest shows it where a test fails
    rng = np.random.default_rng(seed)
    kinds = list(good)
    kind = kinds[int(rng.integers(len(kinds)))]
    path = tmp_path / "mutant"
    path.write_bytes(good[kind].read_bytes())
    damage = [damage_bytes, damage_tensors][int(rng.integers(2))]
    damage(path, rng)
    one = trainer(1, kind)
    one.fit((X, Y), 1)
    before = state_of(one)
    refusal = None
    try:
        one.load(path)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert len(refusal) < 2000
        assert state_of(one) == before
        return
    try:
        with np.errstate(all="ignore"):
            one.fit((X, Y), 4, validation=(X, Y))
    except FloatingPointError:
        return  # the saved run had diverged, as far as its file says
    except ValueError as error:
        assert "the unfinished epoch has" in str(error)  # noqa: PT017  # of other data
        return
    one.save(tmp_path / "again")
    one.load(tmp_path / "again")
    one.history.to_csv(tmp_path / "history.csv")
