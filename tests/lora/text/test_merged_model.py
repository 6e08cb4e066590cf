"""`check --merged` names what was done to a model instead of merging an adapter into it."""

import itertools
import json
import shutil

import gguf
import numpy as np
import pytest

import lora
from lora.__main__ import main
from lora.offline import check_adapter, merge_files
from lora.offline.adapted_base import AdaptedBase
from lora.offline.merged_model import HIDDEN, RIGHT
from lora.peft import CONFIG
from lora.peft import WEIGHTS as ADAPTER
from lora.peft.folder import AdapterFolder
from minigrad.io import TensorInfo, load_state, open_tensors, save_state, writing_set
from tests.lora.folders import edit, without
from tests.lora.text.models import tiny_adapter, tiny_folder, tiny_gguf

WEIGHTS = "model.safetensors"

OPTIONS = {
    "LoRA": {},
    "rsLoRA": {"scaling": "rslora"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3.0}},
    "DoRA": {"use_dora": True},
    "embedding": {"targets": ["embed_tokens", "o_proj"]},
    "saved": {"modules_to_save": ["lm_head"]},
}

DTYPES = [
    *itertools.product(
        ("LoRA", "DoRA"),
        ("float64", "float32", "float16", "bfloat16"),
        ("float32", "bfloat16"),
    ),
    *((name, "bfloat16", "float32") for name in OPTIONS if name not in ("LoRA", "DoRA")),
]

SQUARE = ("q_proj", "o_proj")


def weights(path):
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors}


def updates(base, adapter):
    """dW of each weight in float64, as in the file."""
    found = {}
    with AdaptedBase(base, adapter) as opened:
        for name, weight in opened.weights.items():
            dw = opened.update(name).update(weight, slice(None))
            found[weight.name] = dw.T if opened.files.layers[name].kind == "embedding" else dw
    return found


def write(base, out, change, dtype="float32"):
    """Write a model whose tensors `change` makes, from those of the base."""
    arrays = {name: x.astype(np.float64) for name, x in weights(base).items()}
    arrays = change(arrays) or arrays
    infos = [TensorInfo(name, dtype, x.shape) for name, x in arrays.items()]
    with writing_set(out, {WEIGHTS: infos}, {"format": "pt"}) as writers:
        for name, x in arrays.items():
            writers[name].write(name, x)
    return out


def wrong(*arguments):
    """The verdicts of layers, and what else is wrong."""
    found = check_adapter(*arguments)
    verdicts = {layer.name: layer.verdict for layer in found.merged if layer.verdict != RIGHT}
    return verdicts, [x.what for x in found.findings if x.level == "wrong"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "dtype", "stored"), DTYPES)
def test_a_right_merge_is_right(name, dtype, stored, tmp_path):
    base = tiny_folder(tmp_path / "m", dtype=stored)
    adapter = tiny_adapter(tmp_path / "a", base, **OPTIONS[name])
    merge_files(base, adapter, tmp_path / "out", dtype=dtype)
    found = check_adapter(adapter, base, tmp_path / "out")
    assert found.is_right, found
    assert len(found.merged) == (3 if name == "embedding" else 14)
    assert {layer.dtype for layer in found.merged} == {dtype}
    for layer in found.merged:
        assert layer.ratio == pytest.approx(1, abs=0.03)
    assert f"{len(found.merged)} of {len(found.merged)} layers of the model" in repr(found)


def test_norms_of_dora_may_be_computed_in_float32(tmp_path):
    base = tiny_folder(tmp_path / "m", hidden_size=256, intermediate_size=512)
    adapter = tiny_adapter(tmp_path / "a", base, alpha=0.01, use_dora=True)

    def change(arrays):
        with AdaptedBase(base, adapter) as opened:
            for layer, weight in opened.weights.items():
                m, v = opened.update(layer).lora_magnitude.data, arrays[weight.name]
                a, b = opened.update(layer).exact_factors()
                v = (v + opened.update(layer).scale * b @ a).astype(np.float32)
                squares = np.cumsum(v**2, axis=1, dtype=np.float32)  # one after the other
                arrays[weight.name] = (m / np.sqrt(squares[:, -1]))[:, None] * v

    found = check_adapter(adapter, base, write(base, tmp_path / "out", change))
    assert found.is_right, found


def test_the_base_may_be_a_gguf_file_of_few_bits(tmp_path):
    made = tiny_folder(tmp_path / "m", intermediate_size=64)
    base = tiny_gguf(tmp_path / "m.gguf", made, quantised="Q4_0")
    adapter = tiny_adapter(tmp_path / "a", base)
    merge_files(base, adapter, tmp_path / "out")
    assert check_adapter(adapter, base, tmp_path / "out").is_right
    merged = tiny_gguf(tmp_path / "merged.gguf", tmp_path / "out")
    assert check_adapter(adapter, base, merged).is_right
    assert not check_adapter(adapter, base, base).is_right


MISTAKES = {
    "dropped": (0.0, "is that of the base, so the update was dropped"),
    "twice": (2.0, "has the update in it twice"),
    "subtracted": (-1.0, "has the update subtracted"),
    "scale lost": (4 / 12, "has the update with the scale 1, so its scale of 3 was lost"),
    "another scale": (0.7, "with the scale 2.1, which is 0.7 times 3"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_factor_is_named(name, dtype, tmp_path):
    factor, verdict = MISTAKES[name]
    base = tiny_folder(tmp_path / "m", dtype=dtype)
    adapter = tiny_adapter(tmp_path / "a", base, alpha=12)
    dw = updates(base, adapter)

    def change(arrays):
        for key, update in dw.items():
            arrays[key] += factor * update

    found, others = wrong(adapter, base, write(base, tmp_path / "out", change, dtype))
    assert len(found) == 14
    if dtype == "float32" or factor in (0.0, 2.0, -1.0):
        assert all(verdict in each for each in found.values()), found
        assert len(others) == 14
    else:  # rounding hides the last digits
        assert all("has the update with the scale" in each for each in found.values()), found


def test_all_mistakes_with_the_same_factor_are_named(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base, alpha=2)
    dw = updates(base, adapter)  # with 2 / 4

    def change(arrays):
        for key, update in dw.items():
            arrays[key] += 2 * update

    found, _ = wrong(adapter, base, write(base, tmp_path / "out", change))
    assert len(found) == 14
    for verdict in found.values():
        assert "has the update in it twice" in verdict
        assert "so its scale of 0.5 was lost" in verdict
        assert "as if the scaling were rslora" in verdict


def test_other_shapes_are_named_and_counted(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base)
    merge_files(base, adapter, tmp_path / "merged")

    def change(arrays):
        up, down = (f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))
        arrays[up] = arrays[up].T
        arrays[down] = arrays[down][:40]

    found = check_adapter(adapter, base, write(tmp_path / "merged", tmp_path / "out", change))
    findings = {each.where: each.what for each in found.findings}
    assert findings["model.layers.0.mlp.up_proj.weight"] == (
        "is transposed: its shape is (32, 48) in the model, (48, 32) in the base"
    )
    assert findings["model.layers.1.mlp.up_proj.weight"] == (
        "has dtype float32 and shape (40, 32) in the model, and float32 and (48, 32) in the base"
    )
    last = "layers of the model have the update; the model stores them in float32"
    assert f"12 of 14 {last}, and rounding changed the update by" in repr(found)
    found = check_adapter(adapter, base, base)
    assert repr(found).endswith(f"0 of 14 {last}")


def test_a_scale_of_another_rule_is_named(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base, scaling="rslora", alpha=6)
    dw = updates(base, adapter)  # with 6 / 2

    def change(arrays):
        for key, update in dw.items():
            arrays[key] += update * (6 / 4) / (6 / 2)

    found, _ = wrong(adapter, base, write(base, tmp_path / "out", change))
    assert all(
        "with the scale 1.5, not 3, as if the scaling were standard" in each
        for each in found.values()
    )


def test_lost_patterns_are_named(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base, alpha_pattern={"up_proj": 12.0})
    dw = updates(base, adapter)

    def change(arrays):
        for key, update in dw.items():
            arrays[key] += update * (2 / 3 if "up_proj" in key else 1)

    found, _ = wrong(adapter, base, write(base, tmp_path / "out", change))
    assert len(found) == 2
    assert all(
        "with the scale 2, not 3, as if there were no patterns" in each for each in found.values()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_that_rounding_hides_is_odd(dtype, tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base, alpha=1e-5)
    for model in (tmp_path / "out", tmp_path / "copy"):
        if model.name == "out":
            merge_files(base, adapter, model, dtype=dtype)
        else:
            write(base, model, lambda arrays: None, dtype)
        found = check_adapter(adapter, base, model)
        findings = {each.where: (each.level, each.what) for each in found.findings}
        if dtype == "float32":
            assert found.is_right == (model.name == "out")
        else:
            assert found.is_right
            assert set(findings.values()) == {("odd", HIDDEN)}
            assert len(findings) == 14
            assert "0 of 14 layers of the model have the update" in repr(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transposed_update_is_named(dtype, tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base)
    dw = updates(base, adapter)

    def change(arrays):
        for key, update in dw.items():
            is_square = any(part in key for part in SQUARE)
            arrays[key] += update.T if is_square else update

    found, _ = wrong(adapter, base, write(base, tmp_path / "out", change, dtype))
    assert len(found) == 4
    assert set(found.values()) == {"has the update in it transposed"}


def test_a_lost_magnitude_is_named(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base, use_dora=True)
    plain = tmp_path / "plain"
    model = lora.text.load_model(base)
    lora.load(model, adapter)
    with AdapterFolder(adapter) as files:
        dw = {
            f"{name}.weight": layer.scale
            * files.read(layer.keys["lora_b"], np.float64)
            @ files.read(layer.keys["lora_a"], np.float64)
            for name, layer in files.layers.items()
        }

    def change(arrays):
        for key, update in dw.items():
            arrays[key] += update

    found, _ = wrong(adapter, base, write(base, plain, change))
    assert set(found.values()) == {"has the update without DoRA's magnitude"}
    assert len(found) == 14


def test_dropped_layers_and_other_changes_are_named(tmp_path, capsys):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base)
    dw = updates(base, adapter)
    rng = np.random.default_rng(1)

    def change(arrays):
        for key, update in dw.items():
            if "layers.1" not in key:
                arrays[key] += update
        arrays["model.layers.0.mlp.up_proj.weight"] += 0.1 * rng.standard_normal((48, 32))
        arrays["model.norm.weight"][3] += 0.5
        arrays["more.weight"] = np.ones((3, 3))
        del arrays["model.layers.0.input_layernorm.weight"]
        arrays["model.layers.0.mlp.gate_proj.weight"][0, 0] = np.nan

    out = write(base, tmp_path / "out", change)
    assert main(["check", str(adapter), str(base), "--merged", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["is_right"] is False
    findings = {each["where"]: each["what"] for each in found["findings"]}
    dropped = [where for where, what in findings.items() if "dropped" in what]
    assert len(dropped) == 7
    assert all("model.layers.1" in where for where in dropped)
    assert "and is not the base" in findings["model.layers.0.mlp.up_proj"]
    assert "the adapter does not change it" in findings["model.norm.weight"]
    assert "in the model only" in findings["more.weight"]
    assert "is missing" in findings["model.layers.0.input_layernorm.weight"]
    assert "NaN" in findings["model.layers.0.mlp.gate_proj.weight"]
    assert len(found["merged"]) == 13


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("rms_norm_eps", 1e-3, "rms_norm_eps is 0.001 in the model, and 1e-05 in the base"),
        ("rope_theta", 5000.0, "the rotary frequencies are not those of the base"),
        ("rope_scaling", None, "the rotary frequencies are not those of the base"),
        ("num_attention_heads", 8, "num_attention_heads is 8 in the model, and 4 in the base"),
        ("tie_word_embeddings", True, "tie_word_embeddings is True in the model, and False in"),
        ("num_hidden_layers", 1, "num_hidden_layers is 1 in the model, and 2 in the base"),
        ("intermediate_size", 40, "intermediate_size is 40 in the model, and 48 in the base"),
        ("hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
        ("model_type", "gemma", "the architecture ['LlamaForCausalLM'] of model_type 'gemma' is"),
    ],
)
@pytest.mark.parametrize("is_gguf", [False, True])
def test_another_configuration_is_named(key, value, what, is_gguf, tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    base = tiny_folder(tmp_path / "m", rope_scaling=scaling)
    adapter = tiny_adapter(tmp_path / "a", base)
    merge_files(base, adapter, tmp_path / "out")
    if is_gguf:
        factor = "llama__rope__scaling__factor", (2.0, gguf.GGUFValueType.FLOAT32)
        base = tiny_gguf(tmp_path / "m.gguf", base, **dict([factor]))
    assert check_adapter(adapter, base, tmp_path / "out").is_right
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {key: value}))
    verdicts, others = wrong(adapter, base, tmp_path / "out")
    assert not verdicts
    assert len(others) == 1
    assert what in others[0]


def test_a_configuration_that_is_not_json_is_named(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base)
    merge_files(base, adapter, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text('{"model_type": "llama", "hidden')
    assert "is not JSON" in wrong(adapter, base, tmp_path / "out")[1][0]


def test_a_head_of_its_own_or_none_is_no_mistake_if_it_is_tied(tmp_path):
    base = tiny_folder(tmp_path / "m", tie_word_embeddings=True)
    adapter = tiny_adapter(tmp_path / "a", base)
    merge_files(base, adapter, tmp_path / "out")

    def head(arrays):
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]

    with_head = write(tmp_path / "out", tmp_path / "head", head)
    assert check_adapter(adapter, base, with_head).is_right
    double = write(base, tmp_path / "double", head)
    assert check_adapter(adapter, double, tmp_path / "out").is_right
    other = write(
        tmp_path / "out", tmp_path / "other", lambda x: {**x, "lm_head.weight": np.ones((400, 32))}
    )
    assert wrong(adapter, base, other)[1] == ["is in the model only"]


def without_head(arrays):
    del arrays["lm_head.weight"]


CHANGED_HEADS = {
    "an update": ({"targets": ["lm_head", "q_proj"]}, True),
    "in full": ({"modules_to_save": ["lm_head"]}, True),
    "in full, new to the base": ({"modules_to_save": ["lm_head"]}, False),
}


@pytest.mark.parametrize("name", CHANGED_HEADS)
def test_a_head_that_the_adapter_changes_must_be_in_the_model(name, tmp_path):
    options, is_stored = CHANGED_HEADS[name]
    base = tiny_folder(tmp_path / "m", tie_word_embeddings=True)
    embedding = weights(base)["model.embed_tokens.weight"]
    if is_stored:
        double = write(base, tmp_path / "d", lambda arrays: {**arrays, "lm_head.weight": embedding})
        base = shutil.copytree(base, double, ignore=lambda *_: [WEIGHTS], dirs_exist_ok=True)
    adapter = tiny_adapter(tmp_path / "a", tiny_folder(tmp_path / "untied"), **options)
    merge_files(base, adapter, tmp_path / "out", check_base=False)
    assert check_adapter(adapter, base, tmp_path / "out").merged
    assert "is missing in the model" not in wrong(adapter, base, tmp_path / "out")[1]
    write(tmp_path / "out", tmp_path / "lost", without_head)
    assert "is missing in the model" in wrong(adapter, base, tmp_path / "lost")[1]


def test_a_head_may_stay_that_of_the_base_where_the_embedding_is_changed(tmp_path):
    # PEFT trains a copy of a tied embedding in full, and leaves the head as it was.
    base = tiny_folder(tmp_path / "m", tie_word_embeddings=True)
    untied = tiny_folder(tmp_path / "untied")
    options = {"targets": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    adapter = tiny_adapter(tmp_path / "a", untied, **options)
    merged = merge_files(base, adapter, tmp_path / "out", check_base=False)
    assert merged.copied == ["model.embed_tokens.weight"]
    table = weights(base)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(weights(tmp_path / "out")["lm_head.weight"], table)
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    for head, others in ((table, []), (2 * table, ["is in the model only"])):
        change = lambda arrays, head=head: {**arrays, "lm_head.weight": head}
        model = write(tmp_path / "out", tmp_path / "head", change)
        found = [each.what for each in check_adapter(adapter, base, model).findings]
        assert [what for what in found if "in the model" in what] == others
        shutil.rmtree(model)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("names", [["cls.bias"], ["cls.bias", "cls.decoder.bias"]])
def test_a_tied_bias_may_be_stored_under_one_of_its_names(names, trains, rng, tmp_path):
    # The bias of BERT's decoder is that of the predictions. Other biases are equal by chance.
    base, adapter, merged = (tmp_path / f"{x}.safetensors" for x in ("base", "a", "merged"))
    arrays = {"cls.up.weight": rng.standard_normal((4, 4)), "cls.up.bias": np.ones(5)}
    arrays |= {"cls.other.bias": np.ones(5), **dict.fromkeys(names, rng.standard_normal(5))}
    save_state(base, {name: x.astype("f4") for name, x in arrays.items()})
    parts = {"up.lora_A.weight": (2, 4), "up.lora_B.weight": (4, 2)}
    tensors = {f"cls.{name}": rng.standard_normal(shape) for name, shape in parts.items()}
    if trains:
        biases = ["cls.bias", "cls.decoder.bias"], ["cls.up.bias", "cls.other.bias"]
        for each in biases:
            tensors |= dict.fromkeys(each, rng.standard_normal(5))
    adapter.mkdir()
    stored = {f"base_model.model.{key}": x.astype("f4") for key, x in tensors.items()}
    save_state(adapter / ADAPTER, stored)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up"]}
    fields["bias"] = "all" if trains else "none"
    (adapter / CONFIG).write_text(json.dumps(fields))
    merge_files(base, adapter, merged)
    edit(merged, without("cls.decoder.bias"))
    assert wrong(adapter, base, merged) == ({}, [])
    edit(merged, without("cls.other.bias"))
    assert wrong(adapter, base, merged)[1] == ["is missing in the model"]


def pissa_of_peft(w, rank, scale, size, rng):
    """A and B after some training, and the merged W, as PEFT computes them, in float32.

    A decomposition in float32 is that of a matrix which is not quite W.
    """
    error = rng.standard_normal(w.shape)
    error *= 8 * 2.0**-24 * np.linalg.norm(w, 2) / np.linalg.norm(error, 2)
    u, s, v = (x.astype("f4") for x in np.linalg.svd(w + error, full_matrices=False))
    root = np.sqrt(s[:rank] / np.float32(scale))
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    rest = w - np.float32(scale) * (b @ a)
    a, b = (x + size * rng.standard_normal(x.shape).astype("f4") for x in (a, b))
    return a, b, rest + np.float32(scale) * (b @ a)


@pytest.mark.parametrize("size", [1e-3, 0.05])
@pytest.mark.parametrize(("d_out", "d_in"), [(8, 8), (64, 48)])
def test_pissa_is_right_though_peft_began_with_singular_vectors_in_float32(
    d_out, d_in, size, rng, tmp_path
):
    path, adapter = tmp_path / "base.safetensors", tmp_path / "a"
    adapter.mkdir()
    names, arrays, tensors, right = [f"layers.{i}" for i in range(4)], {}, {}, {}
    for name in names:
        w = (rng.standard_normal((d_out, d_in)) / d_in**0.5).astype("f4")
        a, b, merged = pissa_of_peft(w, 4, 2.0, size, rng)
        arrays[f"{name}.weight"], right[f"{name}.weight"] = w, merged
        for part, x in (("A", a), ("B", b)):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = x
    save_state(path, arrays)
    save_state(adapter / ADAPTER, tensors)
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": names}
    (adapter / CONFIG).write_text(json.dumps({**fields, "init_lora_weights": "pissa"}))
    save_state(tmp_path / "right.safetensors", right)
    assert wrong(adapter, path, tmp_path / "right.safetensors") == ({}, [])
    off = {name: w + np.float32(0.95) * (right[name] - w) for name, w in arrays.items()}
    save_state(tmp_path / "off.safetensors", off)
    verdicts, _ = wrong(adapter, path, tmp_path / "off.safetensors")
    assert len(verdicts) == 4
    assert all("has the update with the scale 1." in each for each in verdicts.values())


def test_modules_in_full_are_compared_with_the_adapter(tmp_path):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base, modules_to_save=["lm_head"])
    merge_files(base, adapter, tmp_path / "out")
    head = load_state(base / WEIGHTS)[0]["lm_head.weight"]
    write(tmp_path / "out", tmp_path / "lost", lambda x: {**x, "lm_head.weight": head})
    assert wrong(adapter, base, tmp_path / "lost")[1] == ["is not that of the adapter"]


def test_a_small_update_that_rounding_hides_is_still_not_the_base(tmp_path):
    base = tiny_folder(tmp_path / "m", dtype="bfloat16", hidden_size=128, intermediate_size=256)
    adapter = tiny_adapter(tmp_path / "a", base, alpha=0.02)
    merge_files(base, adapter, tmp_path / "out")
    found = check_adapter(adapter, base, tmp_path / "out")
    assert found.is_right
    assert any(layer.error > 0.5 for layer in found.merged)
    shutil.copytree(base, tmp_path / "copy")
    verdicts, _ = wrong(adapter, base, tmp_path / "copy")
    assert len(verdicts) >= 12
    assert all("dropped" in each for each in verdicts.values())


def test_a_model_without_a_base_or_of_another_shape_is_refused(tmp_path, capsys):
    base = tiny_folder(tmp_path / "m")
    adapter = tiny_adapter(tmp_path / "a", base)
    with pytest.raises(ValueError, match="name that too"):
        check_adapter(adapter, merged=base)
    other = tiny_folder(tmp_path / "o", intermediate_size=64)
    assert any("in the model" in each for each in wrong(adapter, base, other)[1])
    assert main(["check", str(adapter), str(base), "--merged", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
