"""The bug zoo at the gradient checkers of PyTorch, JAX and HIPS autograd."""

import pytest

from tests.zoo import MUTANTS, hips_port, jax_port, torch_port

pytestmark = pytest.mark.peers

PORTED = pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.port], ids=str)


PEERS = pytest.mark.parametrize(
    ("package", "peer"), [("torch", torch_port), ("jax", jax_port), ("autograd", hips_port)]
)


@PEERS
def test_what_a_peer_kills_is_counted_for_what_it_can_have_only(package, peer):
    pytest.importorskip(package)
    assert {peer.kills(mutant) for mutant in MUTANTS if not mutant.port} == {None}


@PEERS
@PORTED
def test_a_peer_passes_the_mutant_without_its_fault(package, peer, mutant):
    pytest.importorskip(package)
    assert not peer.kills(mutant, planted=False)


# What the peers do not see at their default settings; we do.
UNSEEN_BY = {
    torch_port: {
        "multiply: the gradient of b is 0.1% too small",  # it allows a relative difference of 1e-3
        "x^3: 3 x^2 is 0.1% too large",
        "tanh: the float32 VJP is 1% too large",  # it asks for float64
    },
    jax_port: set(),
    hips_port: {"tanh: the float32 VJP is 1% too large"},
}
CANNOT_HAVE = {
    torch_port: {mutant.name for mutant in MUTANTS if mutant.port and not mutant.port.torch},
    jax_port: {mutant.name for mutant in MUTANTS if mutant.port and not mutant.port.jax},
    hips_port: set(),
}


@PEERS
@PORTED
def test_a_peer_kills_the_mutants_that_it_is_said_to(package, peer, mutant):
    pytest.importorskip(package)
    if mutant.name in CANNOT_HAVE[peer]:
        assert peer.kills(mutant) is None
    else:
        assert peer.kills(mutant) == (mutant.name not in UNSEEN_BY[peer])


BRIDGED = [("torch", torch_port, m) for m in MUTANTS if m.port]
# A call of JAX compiles for seconds, and what is new in it is the way in and out of JAX.
BRIDGED += [("jax", jax_port, m) for m in [m for m in MUTANTS if m.port][::5]]


@pytest.mark.parametrize(("package", "peer", "mutant"), BRIDGED, ids=str)
def test_gradcheck_kills_the_mutant_as_a_function_of_a_peer_and_passes_it_without(
    package, peer, mutant
):
    pytest.importorskip(package)
    if mutant.name in CANNOT_HAVE[peer]:
        assert peer.verdict(mutant) is None
    else:
        assert peer.verdict(mutant) in ("disagree", "cannot tell")
        assert peer.verdict(mutant, planted=False) == "agree"
