"""`python -m lora train`, `generate` and `eval`, run in this process on a tiny model."""

import errno
import io
import itertools
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import lora
from lora.__main__ import main
from lora.text.commands import show
from lora.text.data import read_rows
from lora.text.evaluating import evaluate
from lora.text.loading import load_model, tokenizer
from lora.text.model import LanguageModel
from lora.text.run_folder import options_of
from lora.text.samples import Sample, draw, write_samples
from lora.text.training import OPTION_TYPES
from tests.lora.text.models import tiny_folder

ROWS = [
    {"prompt": f"user: why is {name}?\n", "completion": f"because of the {name}."}
    for name in ("sky", "fox", "dog", "air", "text", "model", "blue", "lazy", "plain", "brown")
]


@pytest.fixture
def base(tmp_path):
    return tiny_folder(tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture
def no_samples(monkeypatch):
    """Leave out the answers and the picture at the end of a training, which take half its time."""
    monkeypatch.setattr("lora.text.samples.write_samples", lambda *_: [])
    monkeypatch.setattr("lora.text.samples.draw", lambda *_: None)


def run(capsys, *arguments):
    """The exit status, and what was printed to the two streams."""
    capsys.readouterr()
    status = main(list(map(str, arguments)))
    return status, *capsys.readouterr()


TRAIN = ("--rank", 4, "--alpha", 8, "--steps", 6, "--batch-size", 4, "--lr", 0.02)


def test_an_adapter_that_was_trained_is_measured_and_written_with(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    status, printed, _ = run(capsys, "train", base, data, out, *TRAIN, "--seed", 3, "--json")
    assert status == 0
    result = json.loads(printed)
    assert [step["step"] for step in result["steps"]] == [1, 2, 3, 4, 5, 6]
    assert result["data"]["train"]["rows"] == len(ROWS)
    assert options_of(out / "options.json", OPTION_TYPES)["train_on_prompts"] is False
    assert (out / "training.png").stat().st_size > 10_000
    assert json.loads((out / "adapter_config.json").read_bytes())["task_type"] == "CAUSAL_LM"
    first, second = result["samples"]
    assert first["prompt"] == ROWS[0]["prompt"]
    assert second["expected"].startswith(ROWS[5]["completion"])
    model, tok = load_model(base), tokenizer(base)
    options = {"max_tokens": 40}
    assert first["before"] == lora.text.generate(model, tok, first["prompt"], **options)
    lora.load(model, out)
    assert first["after"] == lora.text.generate(model, tok, first["prompt"], **options)
    assert (out / "adapter_model.safetensors").is_file()

    status, printed, _ = run(capsys, "eval", base, data, "--adapter", out, "--json")
    found = json.loads(printed)
    assert status == 0
    assert found["loss"] < found["base"]
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert found["standard_error"] > 0
    model, tok = load_model(base), tokenizer(base)
    rows = read_rows(data, tok)
    assert (
        found["base"]
        == found["base_report"]["loss"]
        == pytest.approx(evaluate(model, rows).loss, rel=1e-6)
    )
    assert found["tokens"] == sum(row.counted[1:].sum() for row in rows)
    assert found["data"] == {"file": str(data), "rows": len(ROWS), "notes": {}}

    ask = ("--prompt", ROWS[0]["prompt"], "--max-tokens", 5, "--temperature", 0)
    status, printed, _ = run(capsys, "generate", base, "--adapter", out, *ask, "--json")
    written = json.loads(printed)
    assert status == 0
    assert 0 < written["tokens"] <= 5
    lora.load(model, out)
    expected = lora.text.generate(model, tok, ROWS[0]["prompt"], max_tokens=5)
    assert written["text"] == expected
    status, printed, _ = run(capsys, "generate", base, "--adapter", out, *ask)
    assert (status, printed) == (0, expected + "\n")


@pytest.mark.parametrize("own", [True, False])
def test_no_adapter_is_trained_into_the_folder_of_a_model(own, base, data, tmp_path, capsys):
    out = base if own else tiny_folder(tmp_path / "other", seed=1)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    status, printed, error = run(capsys, "train", base, data, out, *TRAIN)
    assert (status, printed) == (2, "")
    assert error == f"lora train: {str(out)!r} is the folder of a model; name another one\n"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.full
def test_samples_answer_different_prompts(base, tmp_path):
    file = tmp_path / "rows.jsonl"
    prompts = ["the quick", "the quick", "the quick", "a lazy"]
    rows = [{"prompt": prompt, "completion": f" {i}"} for i, prompt in enumerate(prompts)]
    file.write_text("\n".join(map(json.dumps, rows)))
    model, tok = load_model(base, "float32", progress=False), tokenizer(base)
    lora.attach(model, lora.LoRAConfig(targets=["q_proj"]), progress=False)
    found = write_samples(model, tok, read_rows(file, tok), progress=False)
    assert [sample.prompt.split()[-1] for sample in found] == ["quick", "lazy"]
    assert found[0].expected.startswith(" 0")


@pytest.mark.usefixtures("no_samples")
def test_a_run_is_repeated_from_its_options(base, data, tmp_path, capsys):
    others = ("--targets", "q_proj", "v_proj", "--dtype", "nf4")
    run(capsys, "train", base, data, tmp_path / "a", *TRAIN, *others)
    options = tmp_path / "a" / "options.json"
    assert run(capsys, "train", base, data, tmp_path / "b", "--config", options)[0] == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    status, _, error = run(capsys, "train", base, data, tmp_path / "c", "--config", data)
    assert status == 2
    assert "has no options of a run" in error
    assert "give the options.json of another run, or begin a run in another folder" in error
    for name, what in (("a", "Is a directory"), ("nowhere", "No such file")):
        status, _, error = run(
            capsys, "train", base, data, tmp_path / "c", "--config", tmp_path / name
        )
        assert status == 2
        assert f"{what}" in error
        assert "give the options.json of a run" in error
    resume = ("train", base, data, tmp_path / "a", "--resume")
    assert run(capsys, *resume)[0] == 0
    assert "dtype: it was 'nf4', and is 'float32'" in run(capsys, *resume, "--dtype", "float32")[2]


@pytest.mark.usefixtures("no_samples")
def test_epochs_count_in_place_of_the_steps_of_a_config(base, data, tmp_path, capsys):
    run(capsys, "train", base, data, tmp_path / "a", "--steps", "1")
    others = ("--config", tmp_path / "a" / "options.json", "--epochs", "2")
    assert run(capsys, "train", base, data, tmp_path / "b", *others)[0] == 0
    found = json.loads((tmp_path / "b" / "options.json").read_text())["options"]
    assert (found["steps"], found["epochs"]) == (None, 2)
    run(capsys, "train", base, data, tmp_path / "c", *others, "--steps", "2")
    found = json.loads((tmp_path / "c" / "options.json").read_text())["options"]
    assert (found["steps"], found["epochs"]) == (2, 2)


@pytest.mark.full
@pytest.mark.usefixtures("no_samples")
def test_all_linear_is_a_word_for_the_targets(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    status, _, error = run(capsys, "train", base, data, out, *TRAIN, "--targets", "all-linear")
    assert (status, error.count("Error")) == (0, 0)
    targets = json.loads((out / "adapter_config.json").read_bytes())["target_modules"]
    assert {"q_proj", "down_proj"} <= {name.split(".")[-1] for name in targets}
    assert run(capsys, "train", base, data, out, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "3"}, "steps is an integer or null, not '3'"),
        ({"rank": 2.5}, "rank is an integer, not 2.5"),
        ({"lr": None}, "lr is a number, not None"),
        ({"batch_size": True}, "batch_size is an integer, not True"),
        ({"checkpointing": "false"}, "checkpointing is true or false, not 'false'"),
        ({"targets": 5}, "targets is a text or a list of texts or null, not 5"),
        ({"targets": ["q_proj", 5]}, "targets is a text or a list of texts or null, not"),
        ({"long_rows": "drop"}, "long_rows is 'cut' or 'refuse', not 'drop'"),
        ({"dtype": ["nf4"]}, "dtype is a text, not ['nf4']"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(base, data, tmp_path, capsys, options, message):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"options": {"steps": 1, **options}}))
    status, _, error = run(capsys, "train", base, data, tmp_path / "out", "--config", file)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.usefixtures("no_samples")
def test_masked_prompts_undo_those_of_a_config(base, data, tmp_path, capsys):
    first, second = (tmp_path / name / "options.json" for name in "ab")
    run(capsys, "train", base, data, first.parent, *TRAIN, "--train-on-prompts")
    assert options_of(first, OPTION_TYPES)["train_on_prompts"] is True
    run(capsys, "train", base, data, second.parent, "--config", first, "--mask-prompt")
    assert options_of(second, OPTION_TYPES) == options_of(first, OPTION_TYPES) | {
        "train_on_prompts": False
    }


@pytest.mark.full
def test_samples_that_cannot_be_written_do_not_lose_a_run(
    base, data, tmp_path, capsys, monkeypatch
):
    def fail(*_, **__):
        raise ValueError("no answer")

    monkeypatch.setattr("lora.text.samples.write_samples", fail)
    status, printed, _ = run(capsys, "train", base, data, tmp_path / "a", *TRAIN)
    assert status == 0
    assert "not answered: no answer" in printed
    assert (tmp_path / "a" / "training.png").is_file()
    status, printed, _ = run(capsys, "train", base, data, tmp_path / "b", *TRAIN, "--json")
    assert (status, json.loads(printed)["samples"]) == (0, [])


@pytest.mark.full
def test_a_picture_that_cannot_be_written_does_not_lose_a_run(base, data, tmp_path, capsys):
    (tmp_path / "out" / "training.png").mkdir(parents=True)
    status, printed, error = run(capsys, "train", base, data, tmp_path / "out", *TRAIN, "--json")
    assert (status, error) == (0, "")
    assert len(json.loads(printed)["samples"]) == 2
    status, printed, _ = run(capsys, "train", base, data, tmp_path / "out", "--resume")
    assert status == 0
    assert re.search("not drawn: .*is a folder; name a file in it\n", printed)


def test_what_would_have_no_effect_is_refused(base, data, tmp_path, capsys):
    two = ("--adapter", tmp_path / "a", "--adapter", tmp_path / "b")
    status, _, error = run(capsys, "generate", base, *two, "--prompt", "a")
    assert (status, "take one --adapter" in error) == (2, True)
    (tmp_path / "file").write_text("")
    status, _, error = run(capsys, "train", base, data, tmp_path / "file", *TRAIN)
    assert (status, "is not a folder, and a folder is needed there" in error) == (2, True)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("a.gguf", "python -m lora convert"), ("adapter_model.safetensors", "name its folder")],
)
def test_a_file_where_an_adapter_is_asked_for_is_named(name, advice, base, tmp_path, capsys):
    (tmp_path / name).write_text("")
    for command in (("inspect",), ("check",), ("merge", base), ("generate", base, "--adapter")):
        others = {"merge": (tmp_path / "out",), "generate": ("--prompt", "a")}
        status, _, error = run(capsys, *command, tmp_path / name, *others.get(command[0], ()))
        assert status == 2
        assert f"{name}' is a file, and an adapter is a folder; " in error
        assert advice in error


@pytest.mark.full
def test_a_full_disk_ends_a_run_that_can_be_resumed(base, data, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("minigrad.io.tensor_file.TensorWriter.write", fail)
    status, printed, error = run(capsys, "train", base, data, tmp_path / "out", *TRAIN)
    last = error.splitlines()[-1]
    assert (status, printed) == (2, "")
    assert last.startswith("lora train: [Errno 28] No space left on device; ")
    assert "resume" in last


@pytest.mark.usefixtures("no_samples")
def test_the_spellings_of_mlx_lm_mean_the_same(base, data, tmp_path, capsys):
    others = ("--iters", 3, "--learning-rate", 0.01, "--max-seq-length", 40)
    ours = ("--steps", 3, "--lr", 0.01, "--max-length", 40)
    run(capsys, "train", base, data, tmp_path / "a", *others, "--mask-prompt", "--grad-checkpoint")
    run(capsys, "train", base, data, tmp_path / "b", *ours, "--checkpointing")
    name = "adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    ask = ("generate", base, "--prompt", "fox", "--max-tokens", 3)
    theirs = run(capsys, *ask, "--adapter-path", tmp_path / "a", "--temp", 0)
    assert theirs == run(capsys, *ask, "--adapter", tmp_path / "a", "--temperature", 0)


def test_train_has_an_option_for_each_of_its_parameters_with_the_text_of_that(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    missing = [n for n in OPTION_TYPES if f"--{n.replace('_', '-')}" not in text]
    assert not missing
    # Before Python 3.13 the metavariable stands behind each spelling.
    spellings = r"--lr(?: LR)?, --learning-rate LR"
    assert re.search(
        rf"{spellings} the largest learning rate, after the warmup \(default: 0\.0002\)", text
    )
    assert "the strength of each update, whose scale is alpha / rank (default: 16)" in text
    assert "by default it follows from --epochs" in text


def test_a_message_that_is_too_long_does_not_end_a_conversation(base, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'why ' * 300}\nwhy?\n"))
    status, printed, _ = run(capsys, "generate", base, "--chat", "--max-tokens", 6)
    assert status == 0
    first, second = printed.split("> ")[1:3]
    assert "this model was made for texts of at most 256; shorten it; /reset begins anew" in first
    model, tok = load_model(base), tokenizer(base)
    plain = lora.text.generate(model, tok, [{"role": "user", "content": "why?"}], max_tokens=6)
    assert second.strip() == "".join(c for c in plain if c.isprintable()).strip()


def test_an_answer_that_is_cut_says_so(base, capsys):
    ask = ("generate", base, "--prompt", "the quick", "--max-tokens")
    _, short, said = run(capsys, *ask, 2)
    assert said == "cut after 2 tokens; --max-tokens allows more\n"
    _, long, said = run(capsys, *ask, 1000)
    assert said == "cut at 256 tokens, the longest text of this model\n"
    room = 256 - len(tokenizer(base).encode_beginning("the quick"))
    assert run(capsys, *ask, room) == (0, long, said)  # no more tokens are possible
    assert long.startswith(short.strip())
    assert run(capsys, *ask, 2, "--json")[2] == ""


def test_bytes_that_are_no_text_do_not_end_a_conversation(base, capsys, monkeypatch):
    lines = io.BytesIO(b"\xff\xfe\nwhy?\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines, encoding="utf-8"))
    status, printed, _ = run(capsys, "generate", base, "--chat", "--max-tokens", 6)
    assert status == 0
    first, second = printed.split("> ")[1:3]
    assert "character 1 of 2 of the line is half of one, or a byte that is not UTF-8" in first
    assert second.strip()


@pytest.mark.parametrize(
    ("options", "template", "message"),
    [
        ((), None, "this model has no chat template"),
        (("--system", "Be kind."), "{{ raise_exception('no system') }}", "refuses these messages"),
        (("--top-k", 0), "{{ messages[0].content }}", "top_k must be a positive integer, not 0"),
        (("--temperature", -1), "{{ messages[0].content }}", "temperature must be in [0.0, inf)"),
    ],
)
def test_a_conversation_that_has_no_answers_does_not_begin(
    base, capsys, monkeypatch, options, template, message
):
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    monkeypatch.setattr("sys.stdin", io.StringIO("why?\nwhy?\n"))
    status, printed, error = run(capsys, "generate", base, "--chat", *options)
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_conversation_needs_a_standard_input(base, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # as in a process that began without one
    status, printed, error = run(capsys, "generate", base, "--chat")
    assert (status, printed) == (2, "")
    assert "reads messages from the standard input, which is closed; open it, or ask one" in error


@pytest.mark.parametrize(
    ("command", "option", "hint"),
    [
        (("train", "BASE", "DATA", "OUT"), "--stpes", " (did you mean '--steps'?)"),
        (("generate", "BASE", "--prompt", "a"), "--maxtokens", " (did you mean '--max-tokens'?)"),
        (("eval", "BASE", "DATA"), "--qqqq", ""),
        (("generate", "BASE"), "hello", ""),
    ],
)
def test_of_a_misspelled_option_the_likely_one_is_named(capsys, command, option, hint):
    with pytest.raises(SystemExit):
        main([*command, option, "3"])
    help_text = f"; python -m lora {command[0]} --help lists the options"
    assert f"unrecognized arguments: {option} 3{hint}{help_text}\n" in capsys.readouterr().err


@pytest.mark.usefixtures("no_samples")
def test_a_conversation_switches_adapters(base, data, tmp_path, capsys, monkeypatch):
    run(capsys, "train", base, data, tmp_path / "taught", *TRAIN)
    lines = "why?\n/use base\nwhy?\n/reset\nwhy?\n/use nobody\n\n/exit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status, printed, _ = run(
        capsys, "generate", base, "--adapter", tmp_path / "taught", "--chat", "--max-tokens", 6
    )
    assert status == 0
    assert printed.count("adapters: base, taught") == 2  # at the start, and for a wrong name
    assert "there is no adapter 'nobody'; /use NAME" in printed
    model, tok = load_model(base), tokenizer(base)
    ask = [{"role": "user", "content": "why?"}]
    plain = lora.text.generate(model, tok, ask, max_tokens=6)
    lora.load(model, tmp_path / "taught")
    taught = lora.text.generate(model, tok, ask, max_tokens=6)
    answers = printed.split("> ")[1:]
    assert answers[1].strip() == "answering with base"
    shown = ["".join(c for c in text if c.isprintable()) for text in (taught, plain)]
    assert answers[0].strip() == shown[0].strip()
    assert answers[4].strip() == shown[1].strip()


def test_an_adapter_has_the_letters_of_its_folder_in_any_script(
    base, data, tmp_path, capsys, monkeypatch
):
    run(capsys, "train", base, data, tmp_path / "größe", *TRAIN)
    shutil.copytree(tmp_path / "größe", tmp_path / "模型 2.0")
    monkeypatch.setattr("sys.stdin", io.StringIO("/use größe\n"))
    adapters = [x for name in ("größe", "模型 2.0") for x in ("--adapter", tmp_path / name)]
    status, printed, _ = run(capsys, "generate", base, *adapters, "--chat")
    assert status == 0
    assert "adapters: base, größe, 模型_2_0\n" in printed
    assert "answering with größe" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "BASE"), "give one of --prompt, --message and --chat"),
        (("generate", "BASE", "--prompt", "a", "--message", "b"), "give one of"),
        (("generate", "BASE", "--prompt", "a", "--system", "b"), "a raw prompt has no turns"),
        (("generate", "nowhere", "--prompt", "a"), "there is no folder and no file 'nowhere'"),
        (("generate", "BASE", "--chat", "--json"), "a conversation is for people"),
        (("eval", "BASE", "nowhere.jsonl"), "there is no file or folder 'nowhere.jsonl'"),
        (("eval", "BASE", "BROKEN"), "line 2"),
        (("eval", "BASE", "LONG", "--adapter", "a", "--adapter", "b"), "one adapter, not with 2"),
        (("eval", "BASE", "BROKEN"), "Expecting value, at its end"),
        (("train", "BASE", "BROKEN", "OUT"), "line 2"),
        (("train", "BASE", "LONG", "OUT", "--long-rows", "refuse"), "line 1: the row has"),
        (("train", "BASE", "LONG", "OUT", "--validate-every", 2), "has no valid.jsonl"),
        (("generate", "BASE", "--prompt", "a", "--seed", -1), "seed must be an integer"),
        (("generate", "BASE", "--prompt", "\udcff"), "character 1 of 1 of the text is half of one"),
        (
            ("train", "BASE", "LONG", "OUT", "--mask-prompt", "--train-on-prompts"),
            "--mask-prompt contradicts --train-on-prompts",
        ),
        (
            ("eval", "BASE", "LONG", "--train-on-prompts", "--mask-prompt"),
            "--mask-prompt contradicts --train-on-prompts",
        ),
        (
            ("generate", "BASE", "--chat", "--adapter", "x/a", "--adapter", "y/a"),
            "a folder name of its own",
        ),
    ],
)
def test_bad_input_is_one_line_and_a_status(base, tmp_path, capsys, arguments, message):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fox"}\n{"text": \n')
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"text": "fox " * 1000}))
    given = {"BASE": base, "BROKEN": broken, "LONG": long, "OUT": tmp_path / "out"}
    status, printed, error = run(capsys, *(given.get(each, each) for each in arguments))
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_json_of_eval_tells_of_rows_that_were_cut_or_left_out(base, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = {"text": "fox " * 9}, {"prompt": "fox " * 9, "completion": "lazy"}, {"text": "fox"}
    file.write_text("\n".join(map(json.dumps, rows)))
    status, printed, error = run(capsys, "eval", base, file, "--max-length", 6, "--json")
    assert (status, error) == (0, "")
    notes = {"cut to 6 tokens": [1], "left out, with no answer up to token 6": [2]}
    assert json.loads(printed)["data"] == {"file": str(file), "rows": 2, "notes": notes}


def test_eval_says_if_logits_are_not_finite(base, data, tmp_path, capsys, monkeypatch):
    loss = LanguageModel.loss

    def broken(*arguments):
        mean, count = loss(*arguments)
        return mean * np.float32(np.nan), count

    monkeypatch.setattr(LanguageModel, "loss", broken)
    status, printed, error = run(capsys, "eval", base, data, "--mask-prompt", "--json")
    assert (status, json.loads(printed)["loss"]) == (0, None)
    assert error == "the logits of this model are not finite numbers, on some row\n"


@pytest.mark.full
@pytest.mark.usefixtures("no_samples")
def test_the_base_may_be_in_few_bits(base, data, tmp_path, capsys):
    out, few = tmp_path / "out", ("--dtype", "bfloat16")
    assert run(capsys, "train", base, data, out, *TRAIN, *few)[0] == 0
    _, printed, _ = run(capsys, "eval", base, data, "--adapter", out, *few, "--json")
    found = json.loads(printed)
    assert found["loss"] < found["base"]


@pytest.mark.full
@pytest.mark.usefixtures("no_samples")
def test_an_adapter_of_the_base_in_other_bits_is_refused_by_default(base, data, tmp_path, capsys):
    run(capsys, "train", base, data, tmp_path / "out", *TRAIN, "--dtype", "nf4")
    ask = ("generate", base, "--adapter", tmp_path / "out", "--prompt", "fox", "--max-tokens", 2)
    status, _, error = run(capsys, *ask)
    assert status == 2
    assert "in nf4 (--dtype nf4 of generate and eval) (likewise 13 other layers: " in error
    assert "; take that base, or say check_base=False" in error
    assert run(capsys, *ask, "--any-base")[0] == 0
    measure = ("eval", base, data, "--adapter", tmp_path / "out", "--any-base", "--json")
    found = json.loads(run(capsys, *measure)[1])
    assert found["loss"] < found["base"]


def test_the_standard_error_of_one_row_is_null(base, data, capsys):
    data.write_text(json.dumps(ROWS[0]))
    assert json.loads(run(capsys, "eval", base, data, "--json")[1])["standard_error"] is None


def test_a_second_folder_after_adapter_is_refused_with_what_to_write(base, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(base), "--adapter", "a", "b", "--chat"])
    error = capsys.readouterr().err
    assert "unrecognized arguments: b; give several adapters by repeating --adapter" in error


def test_a_base_that_memory_cannot_hold_is_refused_in_a_line(base, data, capsys, monkeypatch):
    monkeypatch.setattr("lora.text.loading.physical_memory", lambda: 10_000)
    status, printed, error = run(capsys, "eval", base, data)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert "and this machine has 9.766 KiB of memory" in error


def test_a_loss_that_is_not_finite_ends_a_run_with_a_line(base, data, tmp_path, capsys):
    options = ("--lr", 1e38, "--steps", 9, "--json")
    status, printed, error = run(capsys, "train", base, data, tmp_path / "out", *options)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert "begin again in another folder with an lr below" in error


@pytest.mark.usefixtures("no_samples")
def test_a_run_that_was_stopped_says_so_and_goes_on_with_its_options(
    base, data, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("lora.text.training.save", stop_now)
        status, _, error = run(capsys, "train", base, data, tmp_path / "out", *TRAIN, "--json")
    assert (status, error) == (130, "lora train: stopped after step 6 of 6\n")
    assert run(capsys, "train", base, data, tmp_path / "out", "--resume")[0] == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    status, _, error = run(capsys, "train", base, data, tmp_path / "out", "--resume", "--seed", 9)
    assert status == 2
    assert "seed: it was 0, and is 9" in error


def stop_now(*_, **__):
    raise KeyboardInterrupt("stopped after step 6 of 6")


def test_a_sample_of_a_conversation_has_one_answer(base, tmp_path, capsys):
    turns = [("user", "why?"), ("assistant", "the sky"), ("user", "and?"), ("assistant", "the fox")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": messages}))
    _, printed, _ = run(capsys, "train", base, file, tmp_path / "out", "--steps", 1, "--json")
    (sample,) = json.loads(printed)["samples"]
    assert sample["expected"] == "the sky"


def test_a_base_without_a_tokenizer_is_refused_before_its_weights_are_read(base, capsys):
    (base / "tokenizer.json").unlink()
    (base / "model.safetensors").write_bytes(b"no weights")
    status, _, error = run(capsys, "generate", base, "--prompt", "fox")
    assert status == 2
    assert "has no tokenizer.json" in error


def test_a_picture_has_squares_for_what_its_font_lacks(tmp_path):
    sample = Sample("\u0e44\u0e17\u0e22 \x1b \x7f \x00", "\u0939\u093f", "$\U0001f642$", "\ufffd")
    draw([{"step": 1, "loss": 2.0}], [sample], tmp_path / "picture.png")  # without a warning
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_picture_on_a_slow_machine_gives_no_warning(tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count(step=2).__next__)
    monkeypatch.setattr("matplotlib.legend.time", clock)
    draw([{"step": 1, "loss": 2.0}], [], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_a_reader_may_close_the_pipe_before_the_text_ends(base, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        assert main(["generate", str(base), "--prompt", "why is", "--max-tokens", "20"]) == 0
    assert "pipe" not in capsys.readouterr().err


def test_spaces_and_joined_characters_are_shown_and_what_controls_a_terminal_is_not(capsys):
    text = "10\N{NO-BREAK SPACE}km\N{IDEOGRAPHIC SPACE}\n\tक्\N{ZERO WIDTH JOINER}ष"
    show(f"{text}\x1b[31m\x85\u202e!")
    assert capsys.readouterr().out == f"{text}[31m!"
