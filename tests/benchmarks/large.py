"""What a model of 1.5 billion parameters takes: `python -m tests.benchmarks.large FOLDER`.

A folder is written with random weights in bfloat16 (3.1 GB), in the sizes of Qwen2 1.5B. For each
way to train it, a process loads it and does a LoRA step on all linear layers. The table that is
printed is that of lora/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "eos_token_id": 151643,
}
WAYS = [
    (dtype, rows, length, checkpointing)
    for dtype in ("bfloat16", "nf4")
    for rows, length, checkpointing in ((1, 256, False), (1, 512, False), (1, 512, True))
]


def write(folder: Path) -> None:
    """Write the model: its matrices near a normal distribution, its norms near 1."""
    import ml_dtypes
    from safetensors.numpy import save_file

    from lora.text.architecture import config_from_json, expected_shapes

    rng = np.random.default_rng(0)
    some = (0.02 * rng.standard_normal(1 << 22, np.float32)).astype(ml_dtypes.bfloat16)
    weights = {}
    for name, shape in expected_shapes(config_from_json(CONFIG)).items():
        weights[name] = np.resize(some, shape)  # the same numbers again and again
        if "norm" in name:
            weights[name] += ml_dtypes.bfloat16(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def measure(folder: str, dtype: str, rows: int, length: int, checkpointing: bool) -> None:
    """Load the model, do two steps, and print what they took as JSON."""
    import lora
    from lora import text
    from minigrad import optim
    from tests.benchmarks.machine import most_memory

    start = time.perf_counter()
    model = text.load_model(folder, dtype, progress=False)
    loaded, loading = most_memory(), time.perf_counter() - start
    lora.attach(model, lora.LoRAConfig(rank=8, alpha=16, targets="all-linear"))
    model.checkpointing = checkpointing
    optimizer = optim.AdamW(model.trainable_parameters(), lr=2e-4)
    ids = np.random.default_rng(0).integers(0, 1000, (rows, length))
    for _ in range(2):  # the first one compiles
        start = time.perf_counter()
        optimizer.zero_grad()
        loss, _ = model.loss(ids, np.ones(ids.shape, bool))
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - start
    assert np.isfinite(loss.item())
    print(json.dumps([loading, loaded, seconds, most_memory()]))


def main(folder: str) -> None:
    """Print the table, a row for each way, each measured in a process of its own."""
    if not Path(folder, "config.json").exists():
        write(Path(folder))
    print(
        "| weights | tokens of a batch | checkpointing | loaded in | memory loaded | step | peak |"
    )
    print("|---|---|---|---|---|---|---|")
    for dtype, rows, length, checkpointing in WAYS:
        case = json.dumps([dtype, rows, length, checkpointing])
        command = [sys.executable, "-m", "tests.benchmarks.large", folder, case]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        loading, loaded, seconds, most = json.loads(output)
        print(
            f"| {dtype} | {rows} x {length} | {'yes' if checkpointing else 'no'} | {loading:.0f} s "
            f"| {loaded / 1e9:.1f} GB | {seconds:.0f} s | {most / 1e9:.1f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.benchmarks.large", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a folder to make, or one made before")
    parser.add_argument("case", nargs="?", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is None:
        main(options.folder)
    else:
        measure(options.folder, *options.case)
