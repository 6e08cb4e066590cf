"""lora.verify: right layers pass, every planted fault is found, and nothing is claimed in vain."""

import copy

import numpy as np
import pytest

import lora
import minigrad
from lora import LoRALayer, LoRAScaling, verify
from lora.identities.trial import Agreement, gamma
from minigrad import Tensor, checkpoint, kernels, nn, ops
from tests.lora.models import lora_layer

MSE = minigrad.functional.mse
SHAPES = [(5,), (7, 5), (2, 3, 5)]


def make(kind=LoRALayer, d_out=6, d_in=5, rank=2, dtype=np.float32, trained=True, **options):
    rng, sizes = np.random.default_rng(1), {"d_out": d_out, "d_in": d_in, "rank": rank}
    return lora_layer(rng, dtype, trained, kind=kind, **sizes, **options)


def batch_for(layer, shape=(7, 5), seed=2):
    rng = np.random.default_rng(seed)
    dtype = layer.lora_a.dtype
    shape = (*shape[:-1], layer.d_in)
    y = rng.standard_normal((*shape[:-1], layer.d_out))
    return rng.standard_normal(shape).astype(dtype), y.astype(dtype)


def failures(report):
    return {check.identity for check in report.failed}


# Right layers


@pytest.mark.sampled(5)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("trained", [False, True])
def test_every_kind_of_layer_holds(shape, dtype, dropout, trained):
    for bias in (None, np.ones(6)):
        layer = make(dtype=dtype, dropout=dropout, bias=bias, trained=trained)
        report = verify(layer, MSE, batch_for(layer, shape))
        assert report, report


@pytest.mark.parametrize("rank", range(1, 6))
def test_every_rank_holds(rank):
    layer = make(rank=rank)
    assert verify(layer, MSE, batch_for(layer))


LAYOUTS = [
    lambda w: np.array(w.T, order="C").T,
    lambda w: np.repeat(np.repeat(w, 2, 0), 2, 1)[::2, ::2],
    lambda w: w[::-1, ::-1].copy()[::-1, ::-1],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_weight_hold(layout):
    w = layout(np.random.default_rng(0).standard_normal((6, 5)))
    layer = LoRALayer(w, 6, 5, 2, 4.0)
    assert verify(layer, MSE, batch_for(layer))


def test_the_copies_have_the_layout_of_the_weight():
    seen = set()

    class Notes(LoRALayer):
        def forward(self, x):
            seen.add(self.base_weight.data.flags.f_contiguous)
            return super().forward(x)

    w = np.asfortranarray(np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32))
    layer = Notes(w, 6, 5, 2, 4.0)
    report = verify(layer, lambda y: y.sum(), batch_for(layer)[0])
    assert report
    assert seen == {True}


def test_a_faulty_layer_does_not_get_to_the_weight_of_the_user():
    layer = make(Subtracting)
    before = layer.base_weight.data.copy()
    assert not verify(layer, MSE, batch_for(layer))
    np.testing.assert_array_equal(layer.base_weight.data, before)


@pytest.mark.full
def test_a_weight_that_is_kept_packed_stays_so():
    layer = make(d_out=256, d_in=256)
    x = batch_for(layer, (64, 256))[0]
    layer(x)
    assert not layer.base_weight._data.flags.writeable  # which reading `.data` would change
    assert verify(layer, lambda y: y.sum(), x)
    assert not layer.base_weight._data.flags.writeable


def test_half_precision_holds():
    layer = make(dtype=np.float16)
    assert verify(layer, MSE, batch_for(layer))


@pytest.mark.parametrize("size", [(96, 64, 8, 300), (256, 256, 16, 8)], ids=str)
def test_larger_layers_hold_in_single_precision(size):
    d_out, d_in, rank, n = size
    layer = make(d_out=d_out, d_in=d_in, rank=rank)
    report = verify(layer, lambda y: (y * y).mean(), batch_for(layer, (n, d_in))[0])
    assert report, report


@pytest.mark.full
def test_rounding_that_adds_up_in_one_direction_stays_in_its_bound():
    layer = make(d_out=3, d_in=4, rank=1)
    layer.lora_a, layer.lora_b = np.full((1, 4), 0.1), np.full((3, 1), 0.3)
    x = np.full((20_000, 4), 0.7, np.float32)
    report = verify(layer, lambda y: y.sum(), x)
    assert report, report


@pytest.mark.parametrize("magnitude", [1e-42, 1e-36, 1e-20, 1e15])
def test_magnitudes_near_the_ends_of_the_range_are_no_fault(magnitude):
    layer = make()
    x, _ = batch_for(layer)
    report = verify(layer, lambda y: y.sum(), x * np.float32(magnitude))
    assert not report.failed, report


def test_each_layer_of_a_model_is_reported_by_name():
    model = nn.Sequential(nn.TransformerBlock(8, 2, dropout=0.2), nn.Linear(8, 3))
    lora.attach(model, lora.LoRAConfig(rank=2, dropout=0.1, scaling=LoRAScaling.RSLORA))
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    report = verify(model, lambda model, x: (model(x) ** 2).sum(), x)
    assert report, report
    names = [name for name, m in model.named_modules() if isinstance(m, LoRALayer)]
    assert list(dict.fromkeys(check.layer for check in report.checks)) == names
    assert len(report.checks) == 10 * len(names)
    lines = repr(report).splitlines()
    assert len(lines) == 2 + len(names)
    assert lines[2].startswith(f"{names[0]} ")
    assert "all 10, nearest: " in lines[2]


def test_a_perceptron_with_a_loss_of_predictions_holds():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    lora.attach(model, lora.LoRAConfig(rank=2))
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    assert verify(model, nn.CrossEntropyLoss(), (x, np.arange(9) % 3))


def test_a_layer_that_is_used_twice_and_one_in_a_checkpoint_hold():
    class Twice(nn.Module):
        def __init__(self):
            self.inner = make(d_out=5, dropout=0.3)

        def forward(self, x):
            return checkpoint(self.inner, minigrad.tanh(self.inner(x))) + self.inner(x[0])

    model = Twice()
    report = verify(model, lambda model, x: (model(x) ** 2).sum(), batch_for(model.inner)[0])
    assert report, report


@pytest.mark.parametrize("entry", ["merged", "stale", "disabled", "frozen", "no_grad", "eval"])
def test_the_state_of_the_layer_on_entry_does_not_matter(entry):
    layer = make(dropout=0.2)
    if entry in ("merged", "stale"):
        layer.merge()
    if entry == "stale":
        layer.lora_a = layer.lora_a.data * 2
    layer.enabled = entry != "disabled"
    layer.train(entry != "eval")
    if entry == "frozen":
        layer.freeze()
    with minigrad.no_grad() if entry == "no_grad" else minigrad.enable_grad():
        assert verify(layer, MSE, batch_for(layer))
        assert minigrad.is_grad_enabled() == (entry != "no_grad")
    assert layer.merged == (entry in ("merged", "stale"))
    assert layer.enabled == (entry != "disabled")
    assert layer.training == (entry != "eval")


# Planted faults


def backward_times(**factors):
    """Plant factors in what the kernel of the LoRA product gives for dx, dA and dB."""

    def plant(patch):
        right = kernels.lora.backward

        def wrong(g, x, weight, a, b, h, scale, *rest):
            dx, da, db = right(g, x, weight, a, b, h, scale, *rest)
            words = {"scale": scale, "rows": len(x), "dtype": x.dtype, "h": h, "g": g, "x": x}
            found = {"dx": dx, "da": da, "db": db}
            for name, factor in factors.items():
                if found[name] is not None:
                    found[name] = (found[name] * factor(words)).astype(x.dtype)
            return found["dx"], found["da"], found["db"]

        patch.setattr(kernels.lora, "backward", wrong)

    return plant


def only_base_in_dx(patch):
    right = kernels.lora.backward

    def wrong(g, x, weight, *rest):
        dx, da, db = right(g, x, weight, *rest)
        return (None if dx is None else g @ weight), da, db

    patch.setattr(kernels.lora, "backward", wrong)


RULES = {
    "no scale in dA": backward_times(da=lambda v: 1 / v["scale"]),
    "no scale in dB": backward_times(db=lambda v: 1 / v["scale"]),
    "the scale twice in both": backward_times(da=lambda v: v["scale"], db=lambda v: v["scale"]),
    "a mean over rows": backward_times(da=lambda v: 1 / v["rows"], db=lambda v: 1 / v["rows"]),
    "a sign in dA": backward_times(da=lambda v: -1),
    "dA is 0": backward_times(da=lambda v: 0),
    "dB is 0": backward_times(db=lambda v: 0),
    "both are 0": backward_times(da=lambda v: 0, db=lambda v: 0),
    "both are nan": backward_times(da=lambda v: np.nan, db=lambda v: np.nan),
    "a small error in dB": backward_times(db=lambda v: 1 + 1e-9),
    "a wrong dx": backward_times(dx=lambda v: 1 + 1e-9),
    "no update in dx": only_base_in_dx,
    "in float32 only": backward_times(db=lambda v: 1.01 if v["dtype"] == np.float32 else 1),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("fault", RULES)
@pytest.mark.parametrize("trained", [False, True])
def test_a_fault_in_the_vjps_is_found(fault, trained, monkeypatch):
    layer = make(trained=trained)
    assert verify(layer, MSE, batch_for(layer))
    RULES[fault](monkeypatch)
    report = verify(layer, MSE, batch_for(layer))
    assert report.verdict == "fails", report
    if fault == "in float32 only":
        assert failures(report) == {"y, dx, dA, dB as in float64"}, report


def parts(layer, x):
    """W, b and A, B as the layer's own forward has them."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    bias = None if layer.bias is None else layer.bias.detach()
    return x, layer.base_weight.detach(), bias, layer.lora_a, layer.lora_b


class Unmerged(LoRALayer):
    """A layer whose forward is written out, wrongly, in subclasses; merged it is right."""

    def forward(self, x):
        return super().forward(x) if self.merged else self.wrong(*parts(self, x))


class NoScale(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.linear(x, w, b) + ops.linear(ops.linear(x, lora_a), lora_b)


class NoUpdate(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.linear(x, w, b) + 0.0 * ops.linear(ops.linear(x, lora_a), lora_b)


class DetachedUpdate(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.linear(x, w, b) + (ops.linear(ops.linear(x, lora_a), lora_b)).detach()


class DetachedA(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        h = ops.linear(x, lora_a.detach()) * self.scale
        return ops.linear(x, w, b) + ops.linear(h, lora_b)


class Swapped(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.linear(x, w, b) + ((x @ lora_b) * self.scale) @ lora_a


class TransposedBase(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.linear(x, w.T, b) + ops.linear(ops.linear(x, lora_a) * self.scale, lora_b)


class LeakIntoW(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.lora_linear(x, self.base_weight, lora_a, lora_b, b, self.scale)


class LeakIntoBias(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.lora_linear(x, w, lora_a, lora_b, self.bias, self.scale)


class BiasTwice(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.lora_linear(x, w, lora_a, lora_b, b, self.scale) + b


class NotTheBase(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.lora_linear(x, w, lora_a, lora_b, b, self.scale) * (1 + 2e-7)


class UpdateAtZero(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        return ops.lora_linear(x, w, lora_a, lora_b + 1e-7, b, self.scale)


class TimesTheNormOfA(Unmerged):
    def wrong(self, x, w, b, lora_a, lora_b):
        h = ops.linear(x, lora_a) * (self.scale * (lora_a * lora_a).sum())
        return ops.linear(x, w, b) + ops.linear(h, lora_b)


class MergedABitTooStrong(LoRALayer):
    def merged_weight(self):
        update = self.lora_b.detach() @ self.lora_a.detach()
        return self.base_weight.detach() + update * (1.001 * self.scale)


class MergedWronglyInSingle(LoRALayer):
    def merged_weight(self):
        right = super().merged_weight()
        return right if right.dtype == np.float64 else right * 1.001


class WritesToB(LoRALayer):
    def unmerge(self):
        if self.merged:
            self.lora_b = self.lora_b.data * np.float32(1.001)
        super().unmerge()


class NoBiasMerged(LoRALayer):
    def forward(self, x):
        return ops.linear(x, self.merged_weight()) if self.merged else super().forward(x)


class MergedWithoutScale(LoRALayer):
    def merged_weight(self):
        return self.base_weight.detach() + self.lora_b.detach() @ self.lora_a.detach()


class MergedTransposed(LoRALayer):
    def merged_weight(self):
        return self.base_weight.detach() + (self.lora_b @ self.lora_a).detach().T * self.scale


class Subtracting(LoRALayer):
    """Merges into W itself, and takes the update off again."""

    inside = False

    def _update(self):
        return (self.lora_b.data @ self.lora_a.data * self.scale).astype(self.lora_a.dtype)

    def merge(self):
        self.base_weight.data[...] += self._update()
        self.inside = True

    def unmerge(self):
        if self.inside:
            self.base_weight.data[...] -= self._update()
        self.inside = False

    def forward(self, x):
        if not self.inside:
            return super().forward(x)
        return ops.linear(x, self.base_weight.detach(), self.bias)


class NeverUnmerged(LoRALayer):
    def unmerge(self):
        pass


class DropoutOnAll(LoRALayer):
    def forward(self, x):
        if self.merged:
            return super().forward(x)
        x, w, b, lora_a, lora_b = parts(self, x)
        x = minigrad.dropout(x, self.dropout, self.training, rng=self.rng)
        return ops.lora_linear(x, w, lora_a, lora_b, b, self.scale)


class UnscaledDropout(LoRALayer):
    def forward(self, x):
        if self.merged:
            return super().forward(x)
        x, w, b, lora_a, lora_b = parts(self, x)
        dropped = minigrad.dropout(x, self.dropout, self.training, rng=self.rng)
        h = ops.linear(dropped, lora_a) * (self.scale * (1 - self.dropout))
        return ops.linear(x, w, b) + ops.linear(h, lora_b)


COMPOSED = "y, dx, dA, dB of x (W + s B A)^T + b"
FAULTS = [
    (NoScale, COMPOSED),
    (NoUpdate, COMPOSED),
    (DetachedUpdate, "B = 0: dA = 0, dB is not"),
    (DetachedA, "dA A^T = B^T dB"),
    (Swapped, COMPOSED),
    (TransposedBase, "B = 0: y is the base's"),
    (LeakIntoW, "no gradient reaches W and b"),
    (LeakIntoBias, "no gradient reaches W and b"),
    (BiasTwice, "B = 0: y is the base's"),
    (NotTheBase, COMPOSED),
    (UpdateAtZero, "B = 0: y is the base's"),
    (TimesTheNormOfA, "y, dA, dB under (B C^-1, C A)"),
    (TimesTheNormOfA, "dA A^T = B^T dB"),
    (NoBiasMerged, "merged y = unmerged y"),
    (MergedWithoutScale, "merged y = unmerged y"),
    (MergedTransposed, "merged y = unmerged y"),
    (MergedABitTooStrong, "merged y = unmerged y"),
    (Subtracting, "unmerging restores every bit"),
    (NeverUnmerged, "unmerging restores every bit"),
    (DropoutOnAll, "B = 0: y is the base's"),
    (UnscaledDropout, COMPOSED),
]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("kind", "identity"), FAULTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("trained", [False, True])
def test_a_fault_in_the_layer_is_found(kind, identity, dtype, trained):
    dropout = 0.3 if "Dropout" in kind.__name__ else 0.0
    layer = make(kind, d_out=5, rank=2, dtype=dtype, trained=trained, dropout=dropout)
    report = verify(layer, MSE, batch_for(layer))
    assert report.verdict == "fails", report
    assert identity in failures(report), report


@pytest.mark.parametrize(
    ("kind", "identity"),
    [
        (MergedABitTooStrong, "merged y = unmerged y"),
        (WritesToB, "unmerging restores every bit"),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-7])
def test_a_fault_in_an_update_that_is_small_beside_the_base_is_found(kind, identity, size):
    layer = make(kind, d_out=64, d_in=64, rank=4)
    layer.lora_b = layer.lora_b.data * size
    report = verify(layer, MSE, batch_for(layer, (64, 64)))
    assert failures(report) == {identity}, report


def test_a_merge_that_is_wrong_in_single_precision_only_is_found():
    layer = make(MergedWronglyInSingle)
    found = [(c.identity, c.dtype) for c in verify(layer, MSE, batch_for(layer)).failed]
    assert found == [("merged y = unmerged y", "float32")]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_fault_is_the_only_thing_that_is_wrong_with_a_faulty_layer(dropout):
    layer = make(d_out=5, dropout=dropout)
    assert verify(layer, MSE, batch_for(layer))


def test_one_faulty_layer_of_a_model_is_named():
    model = nn.Sequential(make(d_out=5), make(NoScale, d_out=5))
    report = verify(model, MSE, batch_for(model[0]))
    assert {check.layer for check in report.failed} == {"1"}
    assert "fail" in repr(report).splitlines()[0]


# What is undecided


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda layer, batch: Tensor(np.ones(())), "the loss does not use it"),
        (lambda layer, batch: layer(batch[0]).detach().sum(), "no gradient arrives"),
        (lambda layer, batch: (layer(batch[0]) * 0.0).sum(), "no gradient arrives"),
        (lambda layer, batch: layer(batch[0] * 0.0).sum(), "all is below rounding"),
        (lambda layer, batch: layer(batch[0] * np.nan).sum(), "not finite"),
        (lambda layer, batch: (layer(batch[0]) * np.inf).sum(), "not finite"),
        (lambda layer, batch: layer(batch[0][:0]).sum(), "no gradient arrives"),
    ],
)
def test_what_is_undecided_is_never_called_true(loss, why):
    layer = make()
    with np.errstate(invalid="ignore"):
        report = verify(layer, loss, batch_for(layer))
    assert not report
    assert report.verdict == "cannot tell"
    assert any(why in check.note for check in report.undecided), report
    gradients = [c for c in report.checks if "dA" in c.identity or "gradient" in c.identity]
    assert all(check.verdict == "cannot tell" for check in gradients), report


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("base_weight", "W is not finite"),
        ("bias", "b is not finite"),
        ("lora_a", "A is not finite"),
        ("lora_b", "B is not finite"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_of_the_layer_is_not_finite_is_named(name, why, value):
    layer = make()
    getattr(layer, name).data.flat[0] = value
    with np.errstate(all="ignore"):
        # Column 0 is not looked at, so the gradient is finite at least where W or b is not.
        report = verify(layer, lambda y: y[..., 1:].sum(), batch_for(layer)[0])
    assert {check.note for check in report.checks} == {why}
    assert report.verdict == "cannot tell"


def test_a_scale_of_zero_and_dropout_of_all_are_named():
    layer = make()
    layer.scale = 0.0
    report = verify(layer, MSE, batch_for(layer))
    assert {check.note for check in report.undecided} == {"the scale is 0"}
    layer = make(dropout=1.0)
    report = verify(layer, MSE, batch_for(layer))
    assert {check.note for check in report.undecided} == {"dropout leaves nothing"}


@pytest.mark.parametrize("bias", [None, np.zeros(6)])
def test_a_base_of_zeros_holds_and_a_fault_on_it_is_found(bias):
    for kind, verdict in ((LoRALayer, "holds"), (UpdateAtZero, "fails")):
        layer = kind(np.zeros((6, 5), np.float32), 6, 5, 2, 4.0, bias=bias)
        report = verify(layer, MSE, batch_for(layer))
        assert report.verdict == verdict, report


def test_one_that_uses_another_model_than_it_is_handed_is_undecided():
    layer = make()
    x, y = batch_for(layer)
    report = verify(layer, lambda model, batch: MSE(layer(x), y), (x, y))
    assert {check.note for check in report.checks} == {"the loss does not use it"}


# Nothing is changed


def photograph(model, *generators):
    return {
        "values": {k: v.tobytes() for k, v in model.state_dict().items()},
        "nodes": [p.node for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "merged": [m.merged_adapters for m in model.modules() if isinstance(m, LoRALayer)],
        "drawn": [copy.deepcopy(g.bit_generator.state) for g in generators],
    }


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_generators_are_left_as_they_were(merged, fails):
    default, own = minigrad.manual_seed(3), np.random.default_rng(4)
    model = nn.Sequential(make(d_out=5, dropout=0.4, rng=own), nn.Dropout(0.5), make(d_out=5))
    model[1].eval()
    model[0].lora_a.grad = Tensor(np.ones((2, 5), np.float32))
    model[2].lora_a.requires_grad_(False)
    if merged:
        model[2].merge()
    own_of_the_loss = np.random.default_rng(5)

    def loss(model, batch):
        y = minigrad.dropout(model(batch), 0.5, rng=own_of_the_loss)
        if fails:
            raise KeyError("the user's own")
        return (y * y).sum()

    before = photograph(model, default, own, own_of_the_loss)
    if fails:
        with pytest.raises(KeyError, match="the user's own"):
            verify(model, loss, batch_for(model[0])[0])
    else:
        assert verify(model, loss, batch_for(model[0])[0])
    after = photograph(model, default, own, own_of_the_loss)
    assert after == before
    assert minigrad.core.grad_mode.mode.observers == ()


def test_gradients_of_what_is_outside_of_the_model_stay_as_they_were():
    layer, teacher = make(), nn.Linear(5, 6)
    x = Tensor(batch_for(layer)[0], requires_grad=True)
    strength = Tensor(np.ones((), np.float32), requires_grad=True)
    kept = teacher.weight.grad = Tensor(np.ones((6, 5), np.float32))
    assert verify(layer, lambda layer, x: strength * MSE(layer(x), teacher(x)), x)
    assert teacher.weight.grad is kept
    assert teacher.bias.grad is strength.grad is x.grad is None


def test_what_is_no_layer_is_an_error():
    with pytest.raises(TypeError, match="only a Module has adapters, not 3"):
        verify(3, MSE, None)
    with pytest.raises(ValueError, match="no adapters"):
        verify(nn.Linear(2, 2), MSE, None)
    layer = make()
    with pytest.raises(TypeError, match="must return a Tensor of floats with one element"):
        verify(layer, lambda y: y, batch_for(layer)[0])


# The report


def test_the_report_is_a_sentence_and_a_table():
    layer = make()
    report = verify(layer, MSE, batch_for(layer))
    lines = repr(report).splitlines()
    assert lines[0] == "LoRA's identities hold: 10 checks of 1 layer."
    assert lines[1].split() == ["layer", "identity", "in", "deviation", "bound", "verdict"]
    assert lines[2].startswith("the layer  dA A^T = B^T dB ")
    assert lines[2].endswith("holds")
    assert all(0 <= check.deviation <= check.bound for check in report.checks)
    html = report._repr_html_()
    assert html.count("<tr>") == 11
    assert "identities hold" in html
    faulty = verify(make(NoScale), MSE, batch_for(layer))
    assert f"{len(faulty.failed)} fail" in faulty.sentence
    assert not lora.VerifyReport(())


def test_an_undecided_layer_is_one_row():
    model = nn.Sequential(make(d_out=5), make(d_out=5))
    report = verify(model, lambda model, x: (model[0](x) ** 2).sum(), batch_for(model[0])[0])
    lines = repr(report).splitlines()
    assert len(lines) == 4
    assert lines[3].split("  ")[0] == "1"
    assert "all  " in lines[3]
    assert lines[3].endswith("cannot tell (the loss does not use it)")


@pytest.mark.parametrize("trained", [False, True])
def test_what_single_precision_cannot_hold_is_no_fault_and_gives_no_warning(trained):
    layer = make(trained=trained)
    layer.scale = 1e20
    with np.errstate(all="raise"):
        report = verify(layer, lambda y: y.mean() * 1e12, batch_for(layer)[0])
    assert not report.failed, report
    assert all(check.verdict == "holds" for check in report.checks if check.dtype == "float64")
    layer.lora_a.data[...] = 1e30  # x A^T s is Inf, also where B is 0
    layer.scale = 1e12
    report = verify(layer, lambda y: y.mean(), batch_for(layer)[0])
    assert not report.failed, report


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("scale", [1e-4, 1e-2])
@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.full)])
def test_what_single_and_half_precision_round_to_zero_is_no_fault(seeds, scale, dtype):
    for seed in seeds:
        layer = make(d_out=40, d_in=60, rank=9, dtype=dtype)
        layer.scale = scale
        small = {np.float16: 1e-4, np.float32: 1e-40}[dtype]
        x = batch_for(layer, (3, 60), seed)[0]
        report = verify(layer, lambda y, small=small: (minigrad.tanh(y) * small).mean(), x)
        assert not report.failed, report


@pytest.mark.parametrize("bias", [1.0, 1e4])
def test_a_bias_that_is_large_beside_the_rest_leaves_nothing_undecided(bias):
    layer = make(bias=np.full(6, bias, np.float32), trained=False)
    layer.base_weight.data[...] *= np.float32(1e-5)
    report = verify(layer, lambda y: (y - bias).mean(), batch_for(layer)[0])
    assert report, report


def test_numbers_that_exceed_the_dtype_at_any_matrices_are_named():
    layer = make()
    with np.errstate(over="ignore"):
        report = verify(layer, lambda y: y.sum() * 2e38, batch_for(layer)[0])
    assert {check.note for check in report.undecided} == {"the numbers exceed float32"}
    assert not report.failed, report


def test_a_check_at_other_matrices_than_the_layers_own_says_so():
    layer = make(trained=False)
    notes = {check.identity: check.note for check in verify(layer, MSE, batch_for(layer)).checks}
    assert notes["dA A^T = B^T dB"] == "at a random A and B"
    assert notes["B = 0: dA = 0, dB is not"] == ""


# Bounds


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_stays_in_its_bound_and_the_bound_is_not_idle(dtype, rng):
    u = np.finfo(dtype).eps / 2
    assert gamma(1, dtype) == pytest.approx(u)
    assert gamma(10, dtype) == pytest.approx(10 * u)
    assert gamma(10_000, dtype) == pytest.approx(800 * u, rel=1e-3)
    x = rng.uniform(0.5, 1, 1000).astype(dtype)
    total = dtype(0)
    for value in x:
        total += value
    exact = np.sum(x.astype(np.longdouble))
    error = abs(float(total - exact))
    assert error <= gamma(1000, dtype) * float(exact)
    assert error > gamma(1, dtype) * float(exact) / 100


def test_a_comparison_needs_something_larger_than_its_bound():
    one, bound = np.ones(3), np.full(3, 0.1)
    assert Agreement.of(one, one, bound, one).verdict == "holds"
    assert Agreement.of(one + 0.09, one, bound, one).verdict == "holds"
    assert Agreement.of(one + 0.11, one, bound, one).verdict == "fails"
    assert Agreement.of(one, one, bound, one * 0.09).verdict == "cannot tell"
    assert Agreement.of(one * np.nan, one, bound, one).verdict == "fails"
    assert Agreement.of(one, one * np.inf, bound, one).verdict == "cannot tell"
    assert Agreement.of(one[:0], one[:0], bound[:0], one[:0]).verdict == "cannot tell"
    found = Agreement.of(np.array([1.0, 1.05, 1.0]), one, bound, one)
    assert (found.deviation, found.bound) == (pytest.approx(0.05), 0.1)
