"""MiniLM beside transformers and PEFT, live: names, outputs, and losses of 30 steps."""

from importlib.util import find_spec

import numpy as np
import pytest
from numpy.testing import assert_allclose

pytest.importorskip("tokenizers", reason="the examples need the `examples` extra")

import lora
import minigrad as mg
from examples.minilm import pretrained
from tests.fixtures.make_minilm import TEXTS

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.skipif(
        find_spec(pretrained.PACKAGE) is None,
        reason=f"needs MiniLM's weights: {pretrained.INSTALL}",
    ),
]

TARGETS = ["query", "value"]
STEPS, LR = 30, 1e-3


@pytest.fixture
def both(rng):
    """The model with adapters that are not 0, and PEFT's over BertModel with the same by name."""
    import peft
    import torch
    import transformers

    ours = pretrained.load()
    lora.attach(ours, lora.LoRAConfig(rank=8, alpha=16, targets=TARGETS), rng=rng)
    bert = transformers.BertModel.from_pretrained(pretrained.folder(), add_pooling_layer=False)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS)
    theirs = peft.get_peft_model(bert.eval(), config)
    adapters = {}
    for name, layer in ours.named_modules():
        if isinstance(layer, lora.LoRALayer):
            layer.lora_b = 0.05 * rng.standard_normal((384, 8))
            for kind, factor in (("A", layer.lora_a), ("B", layer.lora_b)):
                key = f"base_model.model.{name}.lora_{kind}.weight"
                adapters[key] = torch.from_numpy(factor.data.copy())
    assert set(peft.get_peft_model_state_dict(theirs)) == set(adapters)
    assert not peft.set_peft_model_state_dict(theirs, adapters).unexpected_keys
    return ours, theirs


def vectors_of(model, ids, mask):
    """PEFT's vectors, as `MiniLM` makes them."""
    import torch

    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
    there = mask[..., None].float()
    tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.nn.functional.normalize((tokens * there).sum(1) / there.sum(1))


def test_an_adapter_fits_by_name_and_gives_the_same_vectors(both):
    import torch

    ours, theirs = both
    batch = pretrained.Texts().encode(TEXTS)
    with mg.no_grad(), torch.no_grad():
        with lora.disabled(ours):
            base = ours(*batch).numpy()
        found, right = ours(*batch).numpy(), vectors_of(theirs, *batch).numpy()
    assert_allclose(found, right, rtol=0, atol=1e-6)
    assert abs(found - base).max() > 0.01


def test_peft_loads_what_is_saved_over_the_same_model(both, tmp_path):
    import peft
    import torch
    import transformers

    ours, _ = both
    lora.save(ours, tmp_path / "adapter")
    bert = transformers.BertModel.from_pretrained(pretrained.folder(), add_pooling_layer=False)
    theirs = peft.PeftModel.from_pretrained(bert.eval(), tmp_path / "adapter")
    batch = pretrained.Texts().encode(TEXTS)
    with mg.no_grad(), torch.no_grad():
        found, right = ours(*batch).numpy(), vectors_of(theirs, *batch).numpy()
    assert_allclose(found, right, rtol=0, atol=1e-6)


def test_thirty_steps_have_the_losses_of_peft(both, rng):
    import torch

    ours, theirs = both
    texts = pretrained.Texts(longest=64)
    pairs = [(f"Return the {a} of {b}.", f"{b}_{a}(x)") for a in WORDS for b in WORDS if a != b]
    right = np.arange(8)
    optimizer = mg.optim.Adam(ours.trainable_parameters(), lr=LR)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    other = torch.optim.Adam(trained, lr=LR)
    losses = []
    for _ in range(STEPS):
        some = [pairs[i] for i in rng.choice(len(pairs), 8, replace=False)]
        batches = [texts.encode(side) for side in zip(*some, strict=True)]
        a, b = (ours(*batch) for batch in batches)
        loss = mg.cross_entropy(a @ b.T * 20, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        a, b = (vectors_of(theirs, *batch) for batch in batches)
        their_loss = torch.nn.functional.cross_entropy(a @ b.T * 20, torch.from_numpy(right))
        other.zero_grad()
        their_loss.backward()
        other.step()
        losses.append((loss.item(), their_loss.item()))
    found, expected = np.array(losses).T
    assert expected[:10].mean() > 2 * expected[-10:].mean()
    difference = abs(found - expected).max()
    print(f"greatest difference of the losses in {STEPS} steps: {difference:.2g}")
    assert difference < 1e-5  # float32 in another order, which 30 steps pass on, and scores * 20


WORDS = ["head", "length", "name", "owner", "place", "size", "tail", "time"]
