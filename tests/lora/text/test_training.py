"""Training an adapter of a language model: the run, its folder, and how it goes on."""

import errno
import json
import os
import re
import signal
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lora
from lora.attachment.state import adapted_layers
from lora.text.data import micro_batches, read_rows
from lora.text.estimating import estimate
from lora.text.evaluating import evaluate
from lora.text.generating import TextGenerator
from lora.text.loading import DTYPES, load_model
from lora.text.run_folder import options_of
from lora.text.tokenization import Tokenizer
from lora.text.training import OPTION_TYPES, train
from minigrad.io import TensorWriter, load_state, save_state
from minigrad.nn import Linear
from minigrad.optim import AdamW
from tests.lora.text.models import TEMPLATE, tiny_folder, tiny_tokenizer
from tests.lora.text.stand_in import StandIn, tokenizer, written


@pytest.fixture
def data(tmp_path):
    written(tmp_path / "data" / "train.jsonl", 30)
    return tmp_path / "data"


@pytest.fixture
def validated(data):
    written(data / "valid.jsonl", 8, seed=1)
    return data


def run(data, out, model=None, tok=None, **options):
    options = {"progress": False, "rank": 2, "lr": 0.05, "steps": 12, **options}
    model, tok = model or StandIn(), tok or tokenizer()
    return train(model, tok, data, out, **options)


def adapter_of(folder):
    return load_state(folder / "adapter_model.safetensors")[0]


def same_runs(one, other):
    assert adapter_of(one.out).keys() == adapter_of(other.out).keys()
    for name, value in adapter_of(one.out).items():
        assert np.array_equal(value, adapter_of(other.out)[name]), name
    for ours, theirs in zip(one.history.steps, other.history.steps, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


# ----------------------------------------------------------------------------------------------
# A run
# ----------------------------------------------------------------------------------------------


def test_training_makes_the_loss_small_and_writes_an_adapter_of_the_base(data, tmp_path):
    model = StandIn()
    result = run(data, tmp_path / "out", model, steps=60)
    losses = [step["loss"] for step in result.history.steps]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert result.best_step == 60
    ids = np.array([[3, 4, 5]])
    again = StandIn()
    lora.load(again, tmp_path / "out", progress=False)
    found, loaded, base = (m(ids).detach().numpy() for m in (model, again, StandIn()))
    assert np.array_equal(loaded, found)
    assert not np.array_equal(base, found)
    text = repr(result)
    assert "30 rows" in text
    assert "60 steps in" in text
    assert "the adapter of step 60" in text


def test_defaults_are_enough_for_twelve_rows(tmp_path, capsys):
    file = written(tmp_path / "rows.jsonl", 12)
    result = train(StandIn(), tokenizer(), file, tmp_path / "out", steps=12)
    assert len(result.history.steps) == 12
    out, err = capsys.readouterr()
    assert out == ""
    assert "rows.jsonl: 12 rows" in err
    assert "memory: about" in err
    assert "training: " in err
    options = json.loads((tmp_path / "out" / "options.json").read_bytes())["options"]
    assert (options["rank"], options["lr"], options["max_length"]) == (8, 2e-4, 64)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_bytes())
    assert set(config["target_modules"]) == {"q_proj", "down_proj"}  # without the head


@pytest.mark.parametrize("mode", [True, False])
def test_training_leaves_a_model_in_the_mode_that_it_was_in(data, tmp_path, mode):
    model = StandIn().train(mode)
    run(data, tmp_path / "out", model, steps=1)
    assert {module.training for module in model.modules()} == {mode}


def test_one_step_and_one_second_are_no_plural(data, tmp_path):
    result = run(data, tmp_path / "out", steps=1)
    result.history.steps[0]["seconds"] = 1.2
    assert "1 step in 1 second; mean loss" in repr(result)
    result.history.steps[0]["seconds"] = 10.4
    assert "1 step in 10 seconds; mean loss" in repr(result)


def test_the_steps_are_those_of_a_loop_by_hand(data, tmp_path):
    model, tok = StandIn(), tokenizer()
    result = run(data, tmp_path / "out", steps=6, warmup=0.0, clip_norm=1e9, batch_size=8)
    rng = np.random.default_rng(0)
    batches = micro_batches(read_rows(data / "train.jsonl", tok), 8, rng)
    lora.attach(model, lora.LoRAConfig(rank=2, exclude=["lm_head"]), rng=rng, progress=False)
    optimizer = AdamW(model.trainable_parameters(), weight_decay=0.0)
    order = [*rng.permutation(4), *rng.permutation(4)]
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / 6)) / 2
        loss, _ = model.loss(*batches[order[step]])
        assert result.history.steps[step]["loss"] == pytest.approx(loss.item(), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_best_adapter_by_validation_is_written(validated, tmp_path):
    model = StandIn()
    (validated / "valid.jsonl").write_text(
        '{"prompt": "fox", "completion": " quick the dog"}\n' * 3
    )
    result = run(validated, tmp_path / "out", model, steps=40, lr=0.1, validate_every=4)
    judged = {
        s["step"]: s["validation_loss"] for s in result.history.steps if "validation_loss" in s
    }
    assert list(judged) == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert result.best_step == min(judged, key=judged.get) != 40
    rows = read_rows(validated / "valid.jsonl", tokenizer())
    found = evaluate(model, rows, progress=False).loss
    assert found == pytest.approx(judged[result.best_step], rel=1e-6)
    assert "validation loss:" in repr(result)


def with_validation_losses(monkeypatch, losses):
    found = iter(losses)
    monkeypatch.setattr("minigrad.training.trainer.mean_loss", lambda *_: next(found))


def test_a_validation_loss_that_is_not_finite_is_never_the_best(validated, tmp_path, monkeypatch):
    with_validation_losses(monkeypatch, [np.nan, 2.0, 1.0, 3.0])
    result = run(validated, tmp_path / "out", steps=8, validate_every=2)
    assert result.best_step == 6
    assert "validation loss: nan (step 2)" in repr(result)


def test_a_run_without_a_finite_validation_loss_is_an_error(validated, tmp_path, monkeypatch):
    with_validation_losses(monkeypatch, [np.nan, np.inf, -np.inf, np.nan])
    with pytest.raises(
        FloatingPointError, match=r"was never finite, so the adapter in .*last step"
    ):
        run(validated, tmp_path / "out", steps=8, validate_every=2)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_validation_is_only_by_request_and_then_at_the_end_too(validated, tmp_path, capsys):
    steps = run(validated, tmp_path / "out", steps=13, validate_every=6).history.steps
    assert [s["step"] for s in steps if "validation_loss" in s] == [6, 12, 13]
    for number, every in enumerate([{}, {"validate_every": 0}]):
        never = run(validated, tmp_path / f"never{number}", steps=13, progress=True, **every)
        assert not any("validation_loss" in s for s in never.history.steps)
        assert never.best_step == 13
        assert "no validation on valid.jsonl; validate_every (--v" in capsys.readouterr().err


def test_epochs_accumulation_and_targets(data, tmp_path):
    result = run(
        data, tmp_path / "out", steps=None, epochs=2, accumulation_steps=3, targets=["q_proj"]
    )
    assert len(result.history.steps) == 2 * 3
    assert {name.split(".")[-3] for name in adapter_of(result.out)} == {"q_proj"}


def test_checkpointing_is_on_in_training_only(data, tmp_path):
    model = StandIn()
    run(data, tmp_path / "out", model, checkpointing=True)
    assert model.used_checkpointing == {True}
    assert not model.checkpointing


def test_the_seed_decides_the_run(data, tmp_path):
    one, same, other = (run(data, tmp_path / f"{i}", seed=s) for i, s in enumerate((0, 0, 1)))
    same_runs(one, same)
    assert one.history.steps[0]["loss"] != other.history.steps[0]["loss"]


# ----------------------------------------------------------------------------------------------
# Going on
# ----------------------------------------------------------------------------------------------


class Interrupted(StandIn):
    """A model at whose n-th loss something happens."""

    def __init__(self, n, act):
        super().__init__()
        self.left, self.act = n, act

    def loss(self, ids, counted, lengths=None):
        if self.training:
            self.left -= 1
            if self.left == 0:
                self.act()
        return super().loss(ids, counted, lengths)


def die():
    raise SystemExit(3)


@pytest.mark.parametrize(("last", "saved"), [(1, 0), (5, 4), (9, 8), (12, 9)])
def test_a_run_that_was_killed_goes_on_to_the_bit(validated, tmp_path, last, saved):
    options = {"save_every": 3, "validate_every": 5, "accumulation_steps": 2}
    whole = run(validated, tmp_path / "whole", **options)
    model = Interrupted(2 * last - 1, die)
    with pytest.raises(SystemExit):
        run(validated, tmp_path / "out", model, **options)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    again = Interrupted(0, die)
    same_runs(run(validated, tmp_path / "out", again, resume=True, **options), whole)
    assert again.left == -2 * (12 - saved)  # two micro-batches in each step that was left


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_with_dora_rslora_and_dropout_goes_on_to_the_bit(data, tmp_path, checkpointing):
    plain = run(data, tmp_path / "plain")
    options = {"use_dora": True, "scaling": "rslora", "dropout": 0.5, "save_every": 3}
    whole = run(data, tmp_path / "whole", checkpointing=checkpointing, **options)
    assert whole.history.steps[0]["loss"] == plain.history.steps[0]["loss"]  # B is zero
    assert whole.history.steps[2]["loss"] != plain.history.steps[2]["loss"]
    with pytest.raises(SystemExit):
        run(data, tmp_path / "out", Interrupted(8, die), checkpointing=checkpointing, **options)
    again = Interrupted(0, die)
    same_runs(
        run(data, tmp_path / "out", again, resume=True, checkpointing=checkpointing, **options),
        whole,
    )
    assert again.left == -6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_bytes())
    assert (config["use_dora"], config["use_rslora"], config["lora_dropout"]) == (True, True, 0.5)
    assert any("magnitude" in name for name in adapter_of(whole.out))


def test_an_option_that_the_file_of_an_older_run_has_not_has_its_default(data, tmp_path):
    run(data, tmp_path / "out")
    file = tmp_path / "out" / "options.json"
    facts = json.loads(file.read_bytes())
    del facts["options"]["use_dora"], facts["options"]["dropout"]
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="use_dora: it was False, and is True"):
        run(data, tmp_path / "out", resume=True, use_dora=True)
    run(data, tmp_path / "out", resume=True)


def test_a_run_of_one_epoch_that_was_killed_has_lost_few_steps(data, tmp_path):
    options = {"steps": None, "batch_size": 1}  # an epoch of 30 steps
    whole = run(data, tmp_path / "whole", **options)
    with pytest.raises(SystemExit):
        run(data, tmp_path / "out", Interrupted(29, die), **options)
    again = Interrupted(0, die)
    same_runs(run(data, tmp_path / "out", again, resume=True, **options), whole)
    assert again.left == -2


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(data, tmp_path):
    whole = run(data, tmp_path / "whole")
    model = Interrupted(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 12; resume"):
        run(data, tmp_path / "out", model)
    assert signal.getsignal(signal.SIGINT) is before
    same_runs(run(data, tmp_path / "out", model, resume=True), whole)  # the very same model


def test_a_second_ctrl_c_ends_at_once(data, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^stopped; resume continues the run in '.*out'"):
        run(data, tmp_path / "out", Interrupted(5, twice), save_every=2)
    same_runs(run(data, tmp_path / "out", resume=True), run(data, tmp_path / "whole"))


def test_another_thread_can_train(data, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(data, tmp_path / "out")))
    thread.start()
    thread.join()
    same_runs(found[0], run(data, tmp_path / "whole"))


def test_a_run_that_is_complete_stays_as_it_is(validated, tmp_path):
    first = run(validated, tmp_path / "out", lr=3.0)
    before = adapter_of(first.out)
    again = run(validated, tmp_path / "out", lr=3.0, resume=True)
    assert again.best_step == first.best_step
    assert all(np.array_equal(value, before[name]) for name, value in adapter_of(again.out).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 3}, "rank: it was 2, and is 3"),
        ({"steps": 13, "seed": 1}, r"steps: it was 12, and is 13\n.*seed: it was 0, and is 1"),
        ({"targets": ["q_proj"]}, r"targets: it was None, and is \['q_proj'\]"),
    ],
)
def test_a_run_does_not_go_on_with_other_options(data, tmp_path, change, message):
    run(data, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    model = StandIn()
    with pytest.raises(
        ValueError, match=f"cannot continue with other data or options:\n.*{message}"
    ):
        run(data, tmp_path / "out", model, resume=True, **change)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    run(data, tmp_path / "out", resume=True, save_every=5)


def test_a_run_does_not_go_on_with_other_data_or_another_base(data, tmp_path):
    run(data, tmp_path / "out")
    with pytest.raises(ValueError, match="base: it was"):
        run(data, tmp_path / "out", StandIn(seed=1), resume=True)
    written(data / "train.jsonl", 30, seed=2)
    with pytest.raises(ValueError, match=r"train\.jsonl: it was"):
        run(data, tmp_path / "out", resume=True)
    written(data / "train.jsonl", 30)
    written(data / "valid.jsonl", 3)
    with pytest.raises(ValueError, match=r"valid\.jsonl: it was None"):
        run(data, tmp_path / "out", resume=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_goes_on_with_its_base_only_whichever_part_of_another_one_differs(
    data, tmp_path, dtype
):
    folder = tiny_folder(tmp_path / "base", "qwen2")  # which has biases

    def base(path=folder):
        return load_model(path, dtype, progress=False)

    run(data, tmp_path / "out", base(), steps=1)
    adapted = base()
    config = lora.LoRAConfig(rank=1, targets=["embed_tokens", "q_proj"], bias="lora_only")
    lora.attach(adapted, config, adapter="other", progress=False)
    for parameter in adapted.trainable_parameters():
        parameter.data = parameter.data + 1
    run(data, tmp_path / "out", adapted, steps=1, resume=True)  # the same base
    others = [tiny_folder(tmp_path / "theta", "qwen2", rope_theta=100.0)]
    names = "embed_tokens", "layers.1.mlp.up_proj", "layers.0.input_layernorm", "norm"
    for name in (*(f"{name}.weight" for name in names), "layers.0.self_attn.q_proj.bias"):
        others.append(tiny_folder(tmp_path / name, "qwen2"))
        state, metadata = load_state(others[-1] / "model.safetensors")
        state[f"model.{name}"] *= 1.5
        save_state(others[-1] / "model.safetensors", state, metadata)
    for other in others:
        with pytest.raises(ValueError, match="base: it was"):
            run(data, tmp_path / "out", base(other), steps=1, resume=True)


def test_a_run_goes_on_with_the_date_that_its_chat_template_wrote(data, tmp_path, monkeypatch):
    tok = Tokenizer(tiny_tokenizer(), {}, "{{ strftime_now('%A, %d %B %Y') }}" + TEMPLATE)

    def today(day):
        clock = SimpleNamespace(now=lambda: datetime(2026, 11, day))
        clock.fromisoformat = datetime.fromisoformat
        monkeypatch.setattr("lora.text.run_folder.datetime", clock)

    today(27)
    options = {"tok": tok, "as_chat": True, "train_on_prompts": True}
    whole = run(data, tmp_path / "whole", **options)
    with pytest.raises(SystemExit):
        run(data, tmp_path / "out", Interrupted(6, die), save_every=2, **options)
    today(28)
    same_runs(run(data, tmp_path / "out", resume=True, **options), whole)
    other = run(data, tmp_path / "other", **options)
    assert other.history.steps[0]["loss"] != whole.history.steps[0]["loss"]
    same_runs(run(data, tmp_path / "other", resume=True, **options), other)


def test_a_run_does_not_go_on_with_another_tokenizer_or_chat_template(data, tmp_path):
    run(data, tmp_path / "out", as_chat=True)
    tok = Tokenizer(tiny_tokenizer(), {}, "Answer. " + TEMPLATE)
    with pytest.raises(ValueError, match=r"options:\n.*of train\.jsonl \(tokenizer, chat template"):
        run(data, tmp_path / "out", tok=tok, as_chat=True, resume=True)


def test_a_folder_with_a_run_and_one_without_are_refused(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume; begin one without resume"):
        run(data, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()
    run(data, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"has options\.json of an earlier run; continue it with resume=True"
    ):
        run(data, tmp_path / "out")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()  # as from PEFT, so it cannot resume
    with pytest.raises(ValueError, match=r"'[^']*' is the folder of an adapter; name another one"):
        run(data, tmp_path / "adapter")
    other = b'{"options": {}, "time": "noon"}'
    for damage in (b"{", b"[]", b"{}", b'{"options": 3, "data": {}, "base": 1}', other):
        (tmp_path / "out" / "options.json").write_bytes(damage)
        with pytest.raises(ValueError, match="has no options of a run"):
            run(data, tmp_path / "out", resume=True)


def test_a_run_with_other_options_is_refused_with_what_to_do(data, tmp_path):
    run(data, tmp_path / "out", rank=2)
    advice = "give the same base, data and options, or begin a run in another folder"
    with pytest.raises(ValueError, match=advice):
        run(data, tmp_path / "out", rank=4, resume=True)


def test_a_path_in_place_of_a_model_a_tokenizer_or_rows_is_refused_with_what_makes_one(
    data, tmp_path
):
    model, tok, path = StandIn(), tokenizer(), str(tmp_path)
    # Of another kind, such as transformers' tokenizer, which has other methods.
    other_model, other_tok = Linear(2, 3), SimpleNamespace(encode=list, decode=str, vocab_size=9)
    wanted = {
        "model": r"lora\.text\.load_model\(path\)",
        "tokenizer": r"lora\.text\.tokenizer\(path\)",
    }
    for name, call in (
        ("model", lambda: train(path, tok, data, tmp_path / "out")),
        ("tokenizer", lambda: train(model, path, data, tmp_path / "out")),
        ("tokenizer", lambda: read_rows(data / "train.jsonl", path)),
        ("model", lambda: TextGenerator(path, tok)),
        ("model", lambda: TextGenerator(tok, model)),
        ("tokenizer", lambda: TextGenerator(model, path)),
        ("model", lambda: evaluate(path, read_rows(data / "train.jsonl", tok))),
        ("model", lambda: train(other_model, tok, data, tmp_path / "out")),
        ("tokenizer", lambda: train(model, other_tok, data, tmp_path / "out")),
        ("tokenizer", lambda: read_rows(data / "train.jsonl", other_tok)),
        ("model", lambda: TextGenerator(other_model, tok)),
        ("tokenizer", lambda: TextGenerator(model, other_tok)),
        ("model", lambda: evaluate(other_model, read_rows(data / "train.jsonl", tok))),
    ):
        with pytest.raises(TypeError, match=rf"\b{name} is what {wanted[name]} returns, not a "):
            call()
    message = r"^evaluate: rows are those of lora\.text\.read_rows\(file, tokenizer\), not "
    for wrong in (path, tmp_path, [{"text": "fox"}]):
        with pytest.raises(TypeError, match=message):
            evaluate(model, wrong)
    with pytest.raises(TypeError, match=r"^train: data are the path of a .*, not a Dataset; write"):
        train(model, tok, read_rows(data / "train.jsonl", tok), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_two_runs_that_begin_at_once_one_has_the_folder(data, tmp_path, monkeypatch):
    others = []

    def save_it_first(*arguments, **options):
        if not others:  # in the last moment before the first run claims the folder
            others.append(None)
            others[0] = run(data, tmp_path / "out")
        return lora.attach(*arguments, **options)

    monkeypatch.setattr("lora.text.training.attach", save_it_first)
    model = StandIn()
    with pytest.raises(
        ValueError, match=r"has options\.json of an earlier run; continue it with resume=True"
    ):
        run(data, tmp_path / "out", model, seed=1)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    same_runs(run(data, tmp_path / "whole"), others[0])
    assert json.loads((tmp_path / "out" / "options.json").read_bytes())["options"]["seed"] == 0


def test_a_run_that_fails_before_its_first_step_leaves_the_folder_to_the_next(data, tmp_path):
    class Breaks(StandIn):
        def loss(self, ids, counted, lengths=None):
            raise MemoryError("no memory")

    with pytest.raises(MemoryError, match="no memory"):
        run(data, tmp_path / "out", Breaks())
    assert contents(tmp_path / "out") == {}
    run(data, tmp_path / "out")


def test_a_first_loss_that_is_not_finite_leaves_the_adapter_and_the_options(data, tmp_path):
    class Breaks(StandIn):
        def loss(self, ids, counted, lengths=None):
            mean, count = super().loss(ids, counted, lengths)
            return mean * np.float32(np.nan), count

    with pytest.raises(FloatingPointError, match="nan at step 1"):
        run(data, tmp_path / "out", Breaks())
    names = ["adapter_config.json", "adapter_model.safetensors", "options.json"]
    assert sorted(contents(tmp_path / "out")) == names


def test_no_adapter_is_trained_into_the_folder_of_a_model(data, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / "out" / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match="is the folder of a model; name another one"):
        run(data, tmp_path / "out")
    (tmp_path / "out" / "pytorch_model.bin").unlink()
    run(data, tmp_path / "out")


# ----------------------------------------------------------------------------------------------
# What goes wrong
# ----------------------------------------------------------------------------------------------


class BreaksAtStep6(StandIn):
    """A model whose sixth loss in training is NaN."""

    calls = 0

    def loss(self, ids, counted, lengths=None):
        self.calls += self.training
        mean, count = super().loss(ids, counted, lengths)
        return (mean * np.float32(np.nan) if self.calls == 6 else mean), count


def check_adapter_is_of_step(step, data, out, tmp_path):
    """Compare the adapter with the checkpoint of a run that ends after this step."""
    with pytest.raises(SystemExit):
        run(data, tmp_path / "other", Interrupted(step + 1, die), save_every=step)
    lora.load(StandIn(), out, progress=False)
    kept = adapter_of(out)
    states, _ = load_state(tmp_path / "other" / "checkpoint.safetensors")
    trained = [v for name, v in states.items() if name.startswith("model.")]
    assert len(kept) == len(trained)
    for value in kept.values():
        assert any(np.array_equal(value, each) for each in trained)


@pytest.mark.parametrize(
    ("every", "step", "which"),
    [(3, 3, "of step 3, from the last checkpoint,"), (7, 5, "before that step")],
)
def test_a_loss_that_is_not_finite_leaves_the_last_adapter_that_is_saved(
    every, step, which, data, tmp_path
):
    with pytest.raises(
        FloatingPointError,
        match=rf"nan at step 6.* The adapter {which} is in '.*out'.*an lr below 0\.05",
    ):
        run(data, tmp_path / "out", BreaksAtStep6(), save_every=every)
    check_adapter_is_of_step(step, data, tmp_path / "out", tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_best_adapter(validated, tmp_path, monkeypatch):
    with_validation_losses(monkeypatch, [3.0, 1.0, 2.0, np.nan, 2.0])
    with pytest.raises(FloatingPointError, match="adapter of step 2, with the least validation"):
        run(validated, tmp_path / "out", BreaksAtStep6(), validate_every=1)
    check_adapter_is_of_step(2, validated, tmp_path / "out", tmp_path)


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while a test says so: no tensor can be written then."""
    state, write = SimpleNamespace(full=False), TensorWriter.write

    def write_if_possible(*arguments):
        if state.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(TensorWriter, "write", write_if_possible)
    return state


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(("last", "saved"), [(1, None), (5, 3), (12, 11)])
def test_a_full_disk_leaves_the_last_checkpoint_from_which_the_run_goes_on(
    validated, tmp_path, disk, last, saved
):
    options = {"save_every": 3, "validate_every": 5, "accumulation_steps": 2}
    whole = run(validated, tmp_path / "whole", **options)

    def fill():
        disk.full, disk.before = True, contents(tmp_path / "out")

    model = Interrupted(2 * last - 1, fill)
    with pytest.raises(OSError, match="No space left") as caught:
        run(validated, tmp_path / "out", model, **options)
    assert caught.value.errno == errno.ENOSPC
    out = str(tmp_path / "out")
    assert f"device; the files in {out!r} are complete, and resume continues from" in str(
        caught.value
    )
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert contents(tmp_path / "out") == disk.before
    assert ("checkpoint.safetensors" in disk.before) == (saved is not None)
    disk.full, again = False, Interrupted(0, die)
    same_runs(run(validated, tmp_path / "out", again, resume=True, **options), whole)


def test_a_disk_that_is_full_after_the_last_step_loses_no_step(data, tmp_path, disk, monkeypatch):
    whole, model = run(data, tmp_path / "whole"), StandIn()

    def save_to_full_disk(*arguments, **options):
        disk.full = True
        lora.save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("lora.text.training.save", save_to_full_disk)
        with pytest.raises(OSError, match=r"No space left .* resume continues"):
            run(data, tmp_path / "out", model)
    assert sorted(contents(tmp_path / "out")) == ["checkpoint.safetensors", "options.json"]
    disk.full, again = False, Interrupted(0, die)
    same_runs(run(data, tmp_path / "out", again, resume=True), whole)
    assert again.left == 0  # no step was made again


def test_a_full_disk_leaves_the_adapter_of_a_run_that_is_complete(data, tmp_path, disk):
    run(data, tmp_path / "out")
    before, disk.full = contents(tmp_path / "out"), True
    with pytest.raises(OSError, match=r"No space left .* resume continues"):
        run(data, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == before


def test_a_full_disk_when_the_loss_is_not_finite_leaves_a_model_without_an_adapter(
    data, tmp_path, disk
):
    class Breaks(StandIn):
        def loss(self, ids, counted, lengths=None):
            disk.full = True
            mean, count = super().loss(ids, counted, lengths)
            return mean * np.float32(np.nan), count

    model = Breaks()
    with pytest.raises(OSError, match="No space left"):
        run(data, tmp_path / "out", model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_a_file_is_no_folder_to_run_in(data, tmp_path):
    (tmp_path / "out").write_bytes(b"")
    for resume in (False, True):
        with pytest.raises(
            NotADirectoryError, match=r"out' is not a folder, and a folder is needed there"
        ):
            run(data, tmp_path / "out", resume=resume)
        with pytest.raises(NotADirectoryError, match=r"out' is not a folder"):
            run(data, tmp_path / "out" / "run", resume=resume)


def test_a_folder_that_may_not_be_written_is_named_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root always may
    with pytest.raises(PermissionError, match=r"nothing can be written into the folder"):
        run(data, tmp_path / "a" / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: 0}, f"{name} must be a positive") for name in ("steps", "epochs", "batch_size")),
        ({"save_every": 0}, "save_every must be a positive"),
        ({"validate_every": -1}, "validate_every must be"),
        ({"accumulation_steps": 1.5}, "accumulation_steps must be"),
        ({"max_length": "9"}, "max_length must be"),
        ({"seed": None}, "seed must be"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"lr": -1.0}, "lr must be positive, not -1.0"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"lr": float("inf")}, r"lr must be in .*, not inf"),
        ({"lr": "fast"}, "lr must be a number, not 'fast'"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, not 0.0"),
        ({"rank": 0}, "rank"),
        ({"rank": 9}, "rank"),
        ({"max_length": 65}, "the model's context is 64 tokens"),
        ({"targets": ["k_proj"]}, "k_proj"),
        ({"targets": []}, "targets are empty"),
        ({"targets": 3}, "targets are names, or one regular expression, not 3"),
        ({"base_model": 3}, "not int"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    data, tmp_path, options, message
):
    model = StandIn()
    with pytest.raises((ValueError, TypeError), match=message):
        run(data, tmp_path / "out", model, **options)
    assert not (tmp_path / "out").exists()
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_data_without_rows_to_train_on_are_refused(tmp_path):
    written(tmp_path / "data" / "test.jsonl", 3)
    with pytest.raises(FileNotFoundError, match=r"no train\.jsonl"):
        run(tmp_path / "data", tmp_path / "out")


# ----------------------------------------------------------------------------------------------
# The estimate
# ----------------------------------------------------------------------------------------------


def numbers(text):
    """The gigabytes of the parts of an estimate."""
    return {
        name.strip(): float(size) for name, size in re.findall(r"([a-z ]+) (\d+\.\d+)[,)]", text)
    }


def test_the_estimate_counts_weights_adapters_and_activations():
    model = StandIn(width=2000)
    model.config.num_hidden_layers = 100
    config = lora.LoRAConfig(rank=1000, exclude=["lm_head"])
    batches = [(np.zeros((4, 100), int), np.ones((4, 100), bool), [100] * 4)]
    found = numbers(estimate(model, config, batches, steps=10))
    weights = sum(p.data.nbytes for p in model.parameters()) / 1e9
    assert found["weights"] == pytest.approx(2 * weights, abs=0.01)  # with packed ones
    assert found["adapters and optimiser"] == pytest.approx(16 * 1000 * 2 * 4000 / 1e9, abs=0.01)
    # 4 h + 3 q + 2 k + 4 f, all of one size, in each layer; 2 h + 3 f in the backward pass
    assert found["activations"] == pytest.approx(4 * 400 * 2000 * 1305 / 1e9, abs=0.01)
    less = numbers(estimate(model, config, batches, checkpointing=True))
    assert less["activations"] == pytest.approx(4 * 400 * 2000 * 118 / 1e9, abs=0.01)
    model.config.vocab_size = 10**6
    whole = numbers(estimate(model, lora.LoRAConfig(rank=1000, targets="all-linear"), batches))
    logits = 4 * 400 * 2 * 10**6 / 1e9  # all of them, and their gradient
    assert whole["activations"] - found["activations"] == pytest.approx(logits, abs=0.01)
    lora.quantize(model, exclude=["lm_head"], progress=False)
    assert numbers(estimate(model, config, batches))["weights"] < 0.5 * found["weights"]


def test_one_second_is_no_plural(monkeypatch):
    batches = [(np.zeros((4, 100), int), np.ones((4, 100), bool), [100] * 4)]
    products = sum(p.data.size for p in StandIn().lm_head.parameters())
    products += sum(p.data.size for p in StandIn().q_proj.parameters()) * 2
    for steps, text in ((1, "1 second"), (2, "2 seconds"), (119, "119 seconds")):
        monkeypatch.setattr("lora.text.estimating.measured_speed", lambda: 4 * 400 * products / 0.6)
        found = estimate(StandIn(), lora.LoRAConfig(rank=2), batches, steps)
        assert found.endswith(f"about {text}")


def test_files_that_are_not_read_are_named(data, tmp_path, capsys):
    for name in ("validation.jsonl", "test.jsonl", "notes.txt"):
        (data / name).write_text("")
    run(data, tmp_path / "out", progress=True)
    said = "not read: validation.jsonl; the files of a folder are train.jsonl, valid.jsonl and"
    assert said in capsys.readouterr().err
    run(data / "train.jsonl", tmp_path / "other", progress=True)
    assert "not read" not in capsys.readouterr().err


def test_the_estimate_counts_the_validations(validated, tmp_path, monkeypatch, capsys):
    """A validation has the forward pass only, which is half of the work of a step."""
    monkeypatch.setattr("lora.text.estimating.measured_speed", lambda: 1e3)
    times = []
    for every in (0, 12, 5):  # none, one after the last step, and one after steps 5, 10 and 12
        run(validated, tmp_path / f"{every}", validate_every=every, progress=True)
        times.append(float(re.search(r"time: about ([\d.]+) minutes", capsys.readouterr().err)[1]))
    rows = read_rows(validated / "valid.jsonl", tokenizer())
    batches = micro_batches(rows, 4, np.random.default_rng(0))
    tokens = sum(ids.size for ids, *_ in batches)
    products = sum(p.data.size for p in StandIn().lm_head.parameters())
    products += sum(p.data.size for p in StandIn().q_proj.parameters()) * 2
    minutes = 2 * products * tokens / 0.6e3 / 60
    np.testing.assert_allclose(np.diff(times), [minutes, 2 * minutes], atol=0.11)


def test_the_estimate_of_a_run_that_resumes_is_of_what_is_left(
    validated, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("lora.text.estimating.measured_speed", lambda: 1e3)

    def minutes(every, resume):
        with suppress(SystemExit):
            options = {"save_every": 1, "validate_every": every, "resume": resume}
            model = Interrupted(0 if resume else 9, die)
            run(validated, tmp_path / f"{every}", model, **options, progress=True)
        text = capsys.readouterr().err
        return float(re.search(r"time: about ([\d.]+) minutes", text)[1])

    whole, left = [[minutes(every, resume) for every in (0, 3)] for resume in (False, True)]
    assert left[0] == pytest.approx(whole[0] * 4 / 12, abs=0.11)  # 8 of 12 steps are done
    assert left[1] - left[0] == pytest.approx((whole[1] - whole[0]) / 2, abs=0.22)
    assert left[1] > left[0]


def test_what_does_not_fit_comes_with_advice(monkeypatch):
    model, config = StandIn(), lora.LoRAConfig(rank=2)
    batches = [(np.zeros((8, 100), int), np.ones((8, 100), bool), [100] * 8)]
    assert "what helps" not in estimate(model, config, batches)
    monkeypatch.setattr(os, "sysconf", lambda name: 10_000)
    text = estimate(model, config, batches)
    assert "this machine has 0.1 GB; what helps: checkpointing, which" in text
    assert "a batch size of 4 with more accumulation steps; a max_length of 50;" in text
    assert "checkpointing, which" not in estimate(model, config, batches, checkpointing=True)


def test_after_an_error_the_adapters_that_were_active_are_active_again(data, tmp_path):
    class Breaks(StandIn):
        def loss(self, ids, counted, lengths=None):
            raise MemoryError("no memory")

    model = Breaks()
    lora.attach(model, lora.LoRAConfig(rank=1), adapter="one")
    with pytest.raises(MemoryError):
        run(data, tmp_path / "out", model)
    assert all(layer.active == ("one",) for _, layer in adapted_layers(model))


@pytest.mark.parametrize("name", ["train_on_prompts", "as_chat", "checkpointing"])
def test_flags_are_true_or_false(data, tmp_path, name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, not 'no'"):
        run(data, tmp_path / "out", **{name: "no"})
    assert not (tmp_path / "out").exists()


def test_the_base_may_be_named_by_a_path(data, tmp_path):
    run(data, tmp_path / "out", steps=1, base_model=tmp_path / "base")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


def test_narrow_integers_of_numpy_count_as_those_of_python(data, tmp_path):
    written(data / "train.jsonl", 300)
    narrow = {"batch_size": np.uint8(1), "steps": None, "epochs": np.uint8(1)}
    done = run(data, tmp_path / "out", max_length=np.int32(9), **narrow)
    assert len(done.history.steps) == 300
    assert options_of(tmp_path / "out" / "options.json", OPTION_TYPES)["max_length"] == 9


def test_options_may_be_numbers_of_numpy_and_targets_a_generator(data, tmp_path):
    options = {"rank": np.int64(2), "steps": np.int64(2)}
    done = run(data, tmp_path / "out", targets=(name for name in ["q_proj"]), **options)
    assert len(done.history.steps) == 2
    assert options_of(tmp_path / "out" / "options.json", OPTION_TYPES)["rank"] == 2


def test_training_computes_no_padding(data, tmp_path):
    class Counts(StandIn):
        computed = 0

        def loss(self, ids, counted, lengths=None):
            self.computed += ids.size
            return super().loss(ids, counted, lengths)

    model = Counts()
    result = run(data, tmp_path / "out", model, steps=None, epochs=2, batch_size=8)
    sizes = {len(row.ids) for row in result.data["train"]}
    assert len(sizes) > 1
    assert model.computed == 2 * sum(len(row.ids) for row in result.data["train"])
