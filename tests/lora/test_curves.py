"""Training with adapters gives the losses that PEFT's gave, which are kept in a file."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.peers.lora_cases import CASES, SAME, STEPS, TOLERANCE, of_losses, relative, train

DTYPE = "float64"  # whose tolerances are small; float32 is compared with PEFT itself

REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "lora.safetensors")


def part(name):
    """What the file has under a name, by what follows it there."""
    prefix = f"{name}; "
    return {k.removeprefix(prefix): v for k, v in REFERENCE.items() if k.startswith(prefix)}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_outputs_are_those_of_peft(name):
    case, right = CASES[name], part(f"{name}; {DTYPE}")
    state = part(f"model {case.model}")
    data = {key: state.pop(key) for key in ("x", "target")}
    values = {key: value for key, value in part(name).items() if ";" not in key}
    curve = train(case, data, state, values, DTYPE)
    assert curve.losses.shape == right["losses"].shape == (STEPS,)
    assert of_losses(curve.losses, right["losses"]) <= TOLERANCE[DTYPE]
    assert relative(curve.output, right["output"]) <= SAME[DTYPE]
    if case.is_mergeable:
        assert relative(curve.merged, right["merged"]) <= SAME[DTYPE]
