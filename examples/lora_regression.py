"""The main demo: adapt a pretrained network to new data, by LoRA and by full fine-tuning.

A network learns to complete handwritten digits: from the upper half of an image it predicts the
lower half. It has never seen a seven. Then we adapt it to 40 sevens, and compare three methods: no
adaptation; training all weights; and LoRA, which trains small updates of two layers.
You will see what each method costs, how well it works on other sevens (and on the other digits,
which the network forgets), whether the differences are larger than the noise between random splits,
and what merging the update changes. It takes half a minute, and draws lora_regression.png.

    python -m examples.lora_regression
    python -m examples.lora_regression --csv houses.csv --target price --shift-by year
"""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.datasets import load_digits

import lora
from examples.command_line import Parser, check_out, run
from minigrad import Trainer, data, metrics, mse, nn, no_grad, optim, progress, tables, tensor
from minigrad.viz.figure import Picture

Array = np.ndarray[Any, Any]
Task = tuple[Array, Array, Array, str, str, str]  # x, y, is_new, names of both groups, unit of y
Outcome = dict[str, Any]  # of one method with one split: a row of the table, and more
Results = dict[str, list[Outcome]]

NONE, FULL, LORA = "not adapted", "full fine-tuning", "LoRA"
OPTIMIZERS: dict[str, Any] = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}
# Chosen with other splits than those of `main`. The results hardly depend on these values.
OPTIONS = {"sgd": {"lr": 0.06, "momentum": 0.9}, "adam": {"lr": 0.005}, "adamw": {"lr": 0.005}}


def digits() -> Task:
    """Predict the lower halves of 1,797 handwritten digits from the upper; sevens are new."""
    images = load_digits()
    upper, lower = np.split(images.data.astype(np.float32), 2, axis=1)  # (1797, 32) each
    return upper, lower, images.target == 7, "the other digits", "sevens", "grey levels, 0 to 16"


def from_csv(path: str | Path | None, target: str | None, shift_by: str | None) -> Task:
    """Predict a column of a file from the others; rows with `shift_by` above its mean are new."""
    if path is None or target is None:
        raise ValueError("give --csv FILE and --target COLUMN together")
    table = data.read_csv(path, target)
    if shift_by is None:  # take the column with the largest correlation with the target
        standard = data.Standardizer.fit(table.x).transform(table.x)
        shift_by = table.features[np.argmax(np.abs(standard.T @ (table.y - table.y.mean())))]
    if shift_by not in table.features:
        raise ValueError(f"--shift-by {shift_by!r} is none of the features {list(table.features)}")
    column = table.x[:, table.features.index(shift_by)]
    border, is_new = column.mean(), column > column.mean()
    old_group, new_group = f"{shift_by} up to {border:.4g}", f"{shift_by} above {border:.4g}"
    for rows, group in ((~is_new, old_group), (is_new, new_group)):
        if len(y := table.y[rows]) < 20 or np.ptp(y) == 0:
            raise ValueError(f"rows with {group}: {len(y)}; 20 of varying {target!r} are needed")
    varied = np.ptp(table.x[~is_new], axis=0) > 0  # other columns are useless for pretraining
    if not varied.any():
        raise ValueError(f"all features are constant in rows with {old_group}")
    return table.x[:, varied], table.y, is_new, old_group, new_group, target


def one_split(
    task: Task, config: lora.LoRAConfig, optimizer: str, epochs: int, quick: bool, seed: int
) -> dict[str, Outcome]:
    """Split at random, pretrain, adapt, merge and unmerge. Return the outcome of each method."""
    x, y, is_new, *_ = task
    rng = np.random.default_rng(seed)
    old, new = (rng.permutation(np.flatnonzero(rows)) for rows in (~is_new, is_new))
    old, old_test = np.split(old, [len(old) * 4 // 5])
    new, new_test = np.split(new, [min(40, len(new) // 2)])  # we adapt to little data
    # Pixels share one mean and scale; with its own, a rarely grey pixel would have huge values.
    features = data.Standardizer.fit(x[old].ravel() if y.shape[1] > 1 else x[old])
    target = data.Standardizer.fit(y[old].ravel())
    inputs, outputs = features.transform(x), target.transform(y)

    def predict(model: nn.Module, rows: Array) -> Array:
        with no_grad():
            return target.inverse(model(tensor(inputs[rows])).numpy())

    def errors(model: nn.Module) -> list[float]:
        return [metrics.rmse(predict(model, rows), y[rows]) for rows in (new_test, old_test)]

    def train(model: nn.Module, name: str, options: Any, rows: Array, n: int, size: int) -> Outcome:
        """Train for n epochs. The errors on the test rows are recorded, but do not influence it."""
        opt = OPTIMIZERS[name](model.trainable_parameters(), **options)
        trainer = Trainer(model, opt, mse, batch_size=size, clip_norm=1.0, progress=False, rng=rng)
        curve = [errors(model)]
        trainer.on_epoch.append(lambda _: curve.append(errors(model)))
        trainer.fit((inputs[rows], outputs[rows]), n)
        return {
            "trains": model.count_parameters(trainable_only=True),
            "ms/step": 1e3 * np.median([step["seconds"] for step in trainer.history.steps]),
            "optimiser bytes": opt.state_bytes(),
            "new: RMSE": curve[-1][0],
            "new: R2": metrics.r2(predict(model, new_test), y[new_test]),
            "old: RMSE": curve[-1][1],
            "curve": curve,
            "shown": (x[new_test], y[new_test], predict(model, new_test)),
        }

    width, seen, epochs = (128, 8_000, min(epochs, 12)) if quick else (256, 40_000, epochs)
    base = nn.MLP([x.shape[1], width, width, width, y.shape[1]], rng=rng)
    results = {NONE: train(base, "adam", {"lr": 0.001}, old, min(200, 1 + seen // len(old)), 32)}
    results[NONE] |= {"trains": 0, "ms/step": 0, "optimiser bytes": 0}
    results[FULL] = train(copy.deepcopy(base), optimizer, OPTIONS[optimizer], new, epochs, 8)
    low_rank = copy.deepcopy(base)
    lora.attach(low_rank, config, rng=rng)
    results[LORA] = train(low_rank, optimizer, OPTIONS[optimizer], new, epochs, 8)

    separate = predict(low_rank, new_test)
    lora.merge(low_rank)
    merged = predict(low_rank, new_test)
    results[LORA]["merging"] = np.abs(merged - separate).max() / np.abs(separate).max()
    lora.unmerge(low_rank)
    assert np.array_equal(predict(low_rank, new_test), separate), "unmerging restores every bit"
    weights = lora.detach(low_rank).state_dict()
    assert all(weights[k].tobytes() == w.tobytes() for k, w in base.state_dict().items())
    return results


def compare(results: Results, method: str, other: str) -> tuple[float, float]:
    """Return how much higher the RMSE of `method` is than that of `other`, and its 99 % margin."""
    pairs = zip(results[method], results[other], strict=True)
    differences = [a["new: RMSE"] - b["new: RMSE"] for a, b in pairs]
    error = np.std(differences, ddof=1) / len(differences) ** 0.5
    return float(np.mean(differences)), float(4.60 * error)  # 4.60 is Student's t for five


def main(
    quick: bool = False,
    out: str | Path = "lora_regression.png",
    rank: int = 8,
    alpha: float = 16.0,
    scaling: Literal["standard", "rslora"] = "standard",
    optimizer: str = "adam",
    epochs: int = 20,
    seed: int = 0,
    csv: str | Path | None = None,
    target: str | None = None,
    shift_by: str | None = None,
) -> Results:
    """Run the demo, print the results, and save the picture."""
    check_out(out)
    config = lora.LoRAConfig(rank=rank, alpha=alpha, targets=r"layers\.[12]", scaling=scaling)
    most = 64 if quick else 128  # with this rank, an update has as many parameters as its layer
    if rank >= most or epochs < 1 or seed < 0:
        raise ValueError(f"need --rank {rank} < {most}, --epochs {epochs} >= 1, --seed {seed} >= 0")
    task = from_csv(csv, target, shift_by) if csv or target or shift_by else digits()
    bar = progress.progress_bar(range(seed, seed + 5), what="adapting", unit="split", shown=True)
    splits = [one_split(task, config, optimizer, epochs, quick, s) for s in bar]
    results = {method: [split[method] for split in splits] for method in (NONE, FULL, LORA)}

    table = []
    for method, outcomes in results.items():
        values = np.array([list(outcome.values())[:6] for outcome in outcomes])
        pairs = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
        table.append([method, *(f"{m:,.3g} +- {s:.2g}" if s else f"{m:,.0f}" for m, s in pairs)])
    print("\n".join(tables.aligned(["", *list(splits[0][NONE])[:6]], table, left=1)))
    print("\nold: {}; new: {}; RMSE in {}; on test rows of five random splits.\n".format(*task[3:]))
    for other in (NONE, FULL):
        by, margin = compare(results, LORA, other)
        how = "clear" if abs(by) > margin else "inside the noise"
        print(f"LoRA of rank {rank} against {other}: RMSE {by:+.3g} +- {margin:.2g} (99 %), {how}")
    merging = max(outcome["merging"] for outcome in results[LORA])
    print(f"Merging changes predictions by {merging:.0e} of the largest; unmerging changes no bit.")
    draw(results, task, out)
    print(f"The picture is in {out}")
    assert all(results[LORA][0][x] < results[FULL][0][x] for x in ("trains", "optimiser bytes"))
    assert merging < 1e-4
    gain, margin = compare(results, NONE, LORA)  # claimed for the digits with the default adapters
    assert gain > margin or csv or (rank, alpha, scaling) != (8, 16, "standard")
    return results


def draw(results: Results, task: Task, out: str | Path) -> None:
    """Save the picture: predictions of the networks of the first split, and all errors."""
    *_, old_group, new_group, unit = task
    given, truth, _ = results[NONE][0]["shown"]
    figure = Picture(14, 7.5)
    *left, right = figure.subplots(1, 2 if truth.shape[1] > 1 else 1, squeeze=False)[0]
    for method, color, marker in ((FULL, "#D55E00", "^"), (LORA, "#0B4F8A", "o")):
        curves = np.array([o["curve"] for o in results[method]])  # (split, epoch, group)
        for i, (group, line) in enumerate(((new_group, "-"), (old_group, "--"))):
            lowest, mean, highest = (f(curves[..., i], axis=0) for f in (np.min, np.mean, np.max))
            name = f"{method}, {results[method][0]['trains']:,} parameters: {group}"
            right.plot(mean, marker + line, color=color, linewidth=2, label=name)
            right.fill_between(np.arange(len(mean)), lowest, highest, color=color, alpha=0.2)
    right.set(title=f"Adaptation to {new_group}: mean and range of five splits", ylim=(0, None))
    right.set(xlabel="epochs of adaptation", ylabel=f"RMSE on test rows ({unit})")
    right.set(xticks=range(0, len(mean), 1 + len(mean) // 6))
    right.legend(handlelength=4)
    for panel in left:
        halves = [np.full_like(truth, np.nan), *(o[0]["shown"][2] for o in results.values()), truth]
        rows = [np.hstack([given, half])[:5].reshape(5, 8, 8) for half in halves]
        framed = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        panel.imshow(np.vstack([np.hstack(row) for row in framed]), cmap="gray_r", vmin=0, vmax=16)
        panel.hlines(10 * np.arange(5) + 4.5, 0, 49, color="#56B4E9")
        panel.set_yticks(10 * np.arange(5) + 4.5, ["given", *results, "the truth"], size="large")
        panel.set(xticks=[], frame_on=False, title=f"Five {new_group}: the lower half is predicted")
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    parser = Parser("lora_regression", __doc__)
    add = parser.add_argument
    add("--rank", type=int, help="the rank of each update (8)")
    add("--alpha", type=float, help="the strength of each update, which --scaling divides (16)")
    add("--scaling", choices=["standard", "rslora"], help="alpha / rank, or alpha / sqrt(rank)")
    add("--optimizer", choices=list(OPTIMIZERS), help="the optimiser of the adaptation (adam)")
    add("--epochs", type=int, help="the number of epochs of adaptation (20)")
    add("--seed", type=int, help="the first of the five seeds (0)")
    add("--csv", metavar="FILE", help="your own table: a header line, then numbers")
    add("--target", metavar="COLUMN", help="the column to predict")
    words = "rows with it above its mean are new (the column most correlated with --target)"
    add("--shift-by", metavar="COLUMN", help=words)
    run(main, parser, refusals=(ValueError, OSError, FloatingPointError))
