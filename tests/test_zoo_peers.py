"""The bug zoo at PyTorch's and HIPS autograd's own gradient checkers."""

import pytest

from tests.zoo import MUTANTS, hips_port, torch_port

pytestmark = pytest.mark.peers

PORTED = pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.port], ids=str)


@pytest.mark.parametrize(("package", "peer"), [("torch", torch_port), ("autograd", hips_port)])
def test_what_a_peer_kills_is_counted_for_what_it_can_have_only(package, peer):
    pytest.importorskip(package)
    assert {peer.kills(mutant) for mutant in MUTANTS if not mutant.port} == {None}


@PORTED
def test_pytorch_passes_the_mutant_without_its_fault(mutant):
    pytest.importorskip("torch")
    assert not torch_port.kills(mutant, planted=False)


@PORTED
def test_hips_autograd_passes_the_mutant_without_its_fault(mutant):
    pytest.importorskip("autograd")
    assert not hips_port.kills(mutant, planted=False)


# What the peers do not see at their default settings; we do.
UNSEEN_BY_PYTORCH = {
    "multiply: the gradient of b is 0.1% too small",  # it allows a relative difference of 1e-3
    "x^3: 3 x^2 is 0.1% too large",
    "tanh: the float32 VJP is 1% too large",  # it asks for float64
}
UNSEEN_BY_HIPS = {"tanh: the float32 VJP is 1% too large"}


@PORTED
def test_pytorch_kills_the_mutants_that_it_is_said_to(mutant):
    pytest.importorskip("torch")
    if mutant.port.torch:
        assert torch_port.kills(mutant) == (mutant.name not in UNSEEN_BY_PYTORCH)


@PORTED
def test_hips_autograd_kills_the_mutants_that_it_is_said_to(mutant):
    pytest.importorskip("autograd")
    assert hips_port.kills(mutant) == (mutant.name not in UNSEEN_BY_HIPS)
