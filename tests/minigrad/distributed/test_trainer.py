"""Trainer on several ranks: the bits of one process, and mistakes that are errors on all ranks."""

import json
import re

import numpy as np
import pytest

from minigrad.io import load_state
from tests.lora.text.models import tiny_folder
from tests.lora.text.stand_in import written
from tests.minigrad.distributed import mishaps
from tests.minigrad.distributed.ranks import needs_mpi, run, run_well
from tests.minigrad.distributed.trainings import KINDS, STEPS, trained

pytestmark = needs_mpi

TRAININGS = "-m", "tests.minigrad.distributed.trainings"
MISHAPS = "-m", "tests.minigrad.distributed.mishaps"

_alone = {}


def alone(kind):
    """Return what one process without a launcher computes."""
    if kind not in _alone:
        _alone[kind] = trained(kind)
    return _alone[kind]


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_have_the_bits_of_one_process(size):
    for out in run_well(size, *TRAININGS):
        assert json.loads(out) == {kind: alone(kind) for kind in KINDS}


@pytest.mark.full
def test_captured_and_eager_steps_have_the_same_bits():
    assert alone("captured") == alone("LoRA")


@pytest.mark.full
def test_a_run_goes_on_on_another_number_of_ranks_as_if_nothing_had_happened(tmp_path):
    went_on = "MLP with dropout, clipping, EMA, scheduler", "LoRA", "captured"
    for steps, size in ((9, 4), (5, 1), (STEPS - 14, 3)):
        options = "--checkpoint", tmp_path, "--steps", steps
        outs = run_well(size, *TRAININGS, *options, *went_on)
    for out in outs:
        assert json.loads(out) == {kind: alone(kind) for kind in went_on}


# --------------------------------------------------------------------------------------------------
# Mistakes
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    outs = run_well(2, *MISHAPS, tmp_path_factory.mktemp("mishaps"))
    return [json.loads(out) for out in outs]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("other_data", "ValueError: .*rank 1 differs from rank 0 in the data"),
        ("other_seeds", "ValueError: .*rank 1 differs from rank 0 in the seeds"),
        ("other_options", "it has clip_norm=2.0; it lacks clip_norm=1.0"),
        ("another_loss", "rank 1 differs from rank 0 in the loss: l1, and mse there"),
        ("other_options_of_the_loss", "rank 1 differs from rank 0 in the attribute delta of the l"),
        ("another_teacher_in_the_loss", "in the weights of net.0.weight of the loss: "),
        ("another_teacher_in_an_evaluation", "in the weights of net.0.weight of the loss: "),
        ("another_frozen_base", "rank 1 differs from rank 0 in the weights of 0.weight"),
        ("another_base_in_nf4", "rank 1 differs from rank 0 in the attribute 0.(base|weight)"),
        ("another_schedule", "rank 1 differs from rank 0 in the scheduler"),
        ("other_parameters", "rank 1 .* in the parameter 2.bias: none, and float32 of shape 4 th"),
        ("another_activation", "rank 1 .* in the attribute 2.__class__: 'Tanh', and 'ReLU' there"),
        (
            "another_function",
            "rank 1 differs from rank 0 in the function 2.function: tanh, and relu",
        ),
        (
            "another_share_of_dropout",
            "rank 1 differs from rank 0 in the attribute 2.p: 0.2, and 0.1",
        ),
        ("another_metric", "rank 1 differs from rank 0 in the metrics: <lambda>, and none there"),
        ("fewer_rows", "rank 1 differs from rank 0 in the data: "),
        ("another_lr", "rank 1 .* in the optimiser: it has lr of group 0=0.02; it lacks lr of g"),
        ("layers_in_another_order", "rank 1 differs from rank 0 in the order of the parameters"),
        ("another_order_of_parameters", "rank 0 in the order of the optimiser's parameters"),
        ("a_layer_that_rank_1_freezes", "rank 0 in which parameters require gradients"),
        ("seeds_on_one_rank", "in whether manual_seed was called: True, and False there"),
        ("draws_in_an_evaluation", "ValueError: the model draws random numbers in an evaluation"),
        ("a_new_generator_in_an_evaluation", "ValueError: the model draws random numbers in an ev"),
        (
            "a_generator_in_the_loss",
            "ValueError: dropout: a training step on several ranks draws from a",
        ),
        ("a_folder_as_checkpoint", "FileNotFoundError: there is no file"),
        (
            "too_few_micro_batches_in_a_step",
            "only 1 .accumulation_steps=1.*; start at most 1 rank,",
        ),
        (
            "too_few_micro_batches_in_all",
            "only 1 .accumulation_steps=2, and the data have 1 in all.; start at most 1 rank,",
        ),
        ("a_checkpoint_that_only_rank_1_sees", "FileNotFoundError: rank 0.*only ranks .1. see one"),
        ("a_damaged_checkpoint", "ValueError: .*damaged' is not a complete safetensors file"),
        ("no_folder_for_the_checkpoint", "FileNotFoundError: checkpoint: there is no folder"),
        ("running_means", "ValueError: the forward pass changes 2.mean"),
        ("a_loss_that_is_not_finite_on_rank_1", "FloatingPointError: the loss became nan at step"),
        ("draws_on_one_rank", "ValueError: rank . has other random numbers than rank ."),
        (
            "draws_from_the_order_on_one_rank",
            "rank 1 differs from rank 0 in the seeds or draws of random generators",
        ),
        ("weights_that_rank_1_changes", "rank 1 differs from rank 0 in the weights of 0.weight"),
        ("an_lr_that_rank_1_changes", "rank 1 differs from rank 0 in the optimiser"),
        ("other_weights_in_a_prediction", "evaluate the same.*in the weights of 0.weight"),
        ("other_data_in_a_prediction", "evaluate the same.*rank 1 differs from rank 0 in the data"),
        ("another_target_in_an_evaluation", "rank 1 differs from rank 0 in the data"),
        ("other_micro_batches_in_an_evaluation", "rank 1 differs from rank 0 in the data"),
        ("other_micro_batches", "ValueError: rank . has other data than rank ."),
        ("draws_from_numpy", "ValueError: a training step on several ranks draws from np.random"),
        ("draws_from_python", "draws from np.random or from Python's random"),
        ("a_counter", "ValueError: the forward pass changes 2.calls, 2.parts"),
        ("a_running_mean_as_number", "ValueError: the forward pass changes 2.mean"),
        ("an_attribute_that_the_first_call_deletes", "the forward pass changes 2.mark"),
        ("a_loss_that_changes", "ValueError: the forward pass changes mean of the loss"),
        ("an_observer_that_a_callback_turns_on", "ValueError: the forward pass changes 2.largest"),
        ("an_observer_that_begins_late", "rank 1 differs from rank 0 in the attribute 2.largest"),
        ("other_numbers_of_epochs", "rank 0 in the length of fit: it has epochs=4; it lacks epo"),
        ("a_full_disk_on_rank_0", "OSError: .*No space left on device: '.*full'"),
    ],
)
def test_a_mistake_is_an_error_on_all_ranks(found, case, message):
    for errors in found:
        text = errors[f"with_{case}"]
        assert re.search(message, text, re.DOTALL), text


def test_a_stop_on_one_rank_ends_all_after_the_same_step(found):
    assert [each["stopped_on_one_rank"] for each in found] == [2, 2]


def test_a_result_of_rank_0_is_returned_on_all(found):
    assert [each["values_of_rank_0"] for each in found] == [[[0, 0], {"rank": 0}]] * 2


def test_a_rank_needs_no_space_on_its_disk_to_load_a_checkpoint(found):
    for each in found:
        loaded, saved = each["loaded_without_space"]
        assert loaded == saved


def test_without_seeds_all_ranks_begin_as_rank_0(found):
    averages, others = (each["averaged_without_seeds"] for each in found)
    assert averages == others
    first, second = (each["begun_without_seeds"] for each in found)
    assert first == second
    assert len(first) == 8


@pytest.mark.parametrize("function", mishaps.ALIKE, ids=lambda function: function.__name__)
def test_ranks_have_what_one_process_has(found, function):
    """Also from generators of a module, and of micro-batches that draw their rows."""
    expected = json.loads(json.dumps(function()))
    assert [each[function.__name__] for each in found] == [expected] * 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("__main__", "the script"),
        ("helper", "the module helper beside"),
        ("package.inside", "the module package.inside beside"),
    ],
)
@pytest.mark.parametrize("is_module", [False, True])
def test_a_rank_with_another_script_or_module_beside_it_is_named(
    tmp_path, monkeypatch, module, name, is_module
):
    package = tmp_path / "package"
    package.mkdir()
    script, other = (package if is_module else tmp_path) / "script.py", tmp_path / "other.py"
    (tmp_path / "helper.py").touch()
    (package / "inside.py").touch()
    other.write_text("# another content")
    script.write_text(
        "import os, sys, helper, package.inside, minigrad\n"
        "if os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1':\n"
        f"    sys.modules[{module!r}].__file__ = {str(other)!r}\n"
        "minigrad.distributed.world()\n"
    )
    command = ["-m", "package.script"] if is_module else [script]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run(2, *command)
    assert ended.status != 0
    assert f"rank 1 differs from rank 0 in {name}" in "".join(ended.err)


# --------------------------------------------------------------------------------------------------
# Only rank 0 prints and writes
# --------------------------------------------------------------------------------------------------


def test_lora_train_names_the_file_that_another_rank_has_not(tmp_path):
    base = tiny_folder(tmp_path / "base")
    for rank, count in enumerate((20, 1)):
        written(tmp_path / f"data{rank}" / "train.jsonl", count)
    code = f"""
import sys
from lora.__main__ import main
from minigrad.distributed import world
options = ["--batch-size", "1", "--accumulation-steps", "2"]
data = f"{tmp_path}/data{{world().rank}}"
sys.exit(main(["train", "{base}", data, "{tmp_path}/out", *options]))
"""
    ended = run(2, "-c", code)
    assert ended.status == 2
    assert re.search(r"rank 1 differs from rank 0 in train.jsonl: \w+, and \w+ there", ended.err[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.parametrize("size", [2, 3, 4])
def test_lora_train_is_the_same_command(size, tmp_path):
    base = tiny_folder(tmp_path / "base")
    written(tmp_path / "data" / "train.jsonl", 20)
    written(tmp_path / "data" / "valid.jsonl", 6, seed=1)
    options = ["--steps", "20", "--batch-size", "2", "--accumulation-steps", "4", "--rank", "2"]
    command = ["-m", "lora", "train", base, tmp_path / "data"]
    first, *others = run_well(size, *command, tmp_path / "all", *options)
    (only,) = run_well(1, *command, tmp_path / "one", *options)
    assert set(others) == {""}
    assert first.replace("all", "one").splitlines()[3:] == only.splitlines()[3:]
    one, every = (load_state(tmp_path / n / "adapter_model.safetensors")[0] for n in ("one", "all"))
    assert one.keys() == every.keys()
    assert all(np.array_equal(one[name], every[name]) for name in one)
