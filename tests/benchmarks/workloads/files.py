"""Files: an adapter is merged into a base, from safetensors to safetensors, in a process.

Or from the very beginning: a virtual environment is made, what is needed is installed, and then it
is merged. Package archives that pip has kept are not fetched again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.merge import SHARD
from tests.benchmarks.workload import OURS, SAME, Contender, Goal, Point, Run, Workload
from tests.benchmarks.workloads.lora import PEFT
from tests.benchmarks.workloads.process import ROOT, SECOND, check_compiled, output


class Base(NamedTuple):
    """A made-up Llama in float32, with an adapter on its queries and values."""

    hidden: int
    layers: int
    vocabulary: int
    rank: int = 8

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor, by its name in a `LlamaModel`."""
        d, inner = self.hidden, 5 * self.hidden // 2
        found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocabulary, d)}
        for i in range(self.layers):
            attention = {f"self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
            mlp = {"mlp.gate_proj.weight": (inner, d), "mlp.up_proj.weight": (inner, d)}
            norms = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
            own = {**attention, **mlp, "mlp.down_proj.weight": (d, inner), **norms}
            found |= {f"layers.{i}.{name}": shape for name, shape in own.items()}
        return {**found, "norm.weight": (d,)}

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(4 * int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def label(self) -> str:
        """How large it is, and its largest tensor."""
        largest = max(4 * int(np.prod(shape)) for shape in self.shapes.values())
        return f"{self.nbytes / 1e9:.2g} GB, largest tensor {largest / 1e6:.0f} MB"


SMALL, LARGE = Base(384, 6, 30_000), Base(2048, 8, 32_000)


def write(base: Base, folder: Path) -> tuple[Path, Path]:
    """The base and the adapter, as transformers and PEFT write them."""
    from minigrad.io import TensorInfo, save_state, writing_set

    rng = np.random.default_rng(0)
    shards: list[list[TensorInfo]] = [[]]
    for name, shape in base.shapes.items():
        info = TensorInfo(name, "float32", shape)
        if sum(each.nbytes for each in shards[-1]) + info.nbytes > SHARD:
            shards.append([])
        shards[-1].append(info)
    count = len(shards)
    named = {f"model-{i:05}-of-{count:05}.safetensors": s for i, s in enumerate(shards, 1)}
    if count == 1:
        named = {"model.safetensors": shards[0]}
    with writing_set(folder / "base", named, {"format": "pt"}) as writers:
        for name, shape in base.shapes.items():
            value = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            writers[name].write(name, value if len(shape) > 1 else 1 + value)
    heads = base.hidden // 64
    config = {
        **{"model_type": "llama", "architectures": ["LlamaModel"], "dtype": "float32"},
        **{"hidden_size": base.hidden, "intermediate_size": 5 * base.hidden // 2},
        **{"num_hidden_layers": base.layers, "vocab_size": base.vocabulary},
        **{"num_attention_heads": heads, "num_key_value_heads": heads},
    }
    (folder / "base" / "config.json").write_text(json.dumps(config))
    adapter = {}
    for i in range(base.layers):
        for name in "qv":
            key = f"base_model.model.layers.{i}.self_attn.{name}_proj"
            draws = rng.standard_normal((2, base.rank, base.hidden), np.float32) * np.float32(0.05)
            adapter |= {f"{key}.lora_A.weight": draws[0], f"{key}.lora_B.weight": draws[1].T}
    (folder / "adapter").mkdir()
    save_state(folder / "adapter" / "adapter_model.safetensors", adapter, {"format": "pt"})
    fields = {"peft_type": "LORA", "r": base.rank, "lora_alpha": 2 * base.rank}
    fields |= {"target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    return folder / "base", folder / "adapter"


def _merge(contender: str, figure: Callable[[Path, dict[str, Any]], float]) -> Any:
    def prepare(base: Base) -> Run:
        kept = tempfile.TemporaryDirectory()
        paths = write(base, Path(kept.name))
        out = Path(kept.name, "out")

        def run() -> float:
            shutil.rmtree(out, ignore_errors=True)
            arguments = [contender, *map(os.fspath, paths), os.fspath(out)]
            text = output(["-m", "tests.benchmarks.merge", *arguments])
            return figure(out, json.loads(text.strip().splitlines()[-1]))

        run.kept = kept  # type: ignore[attr-defined]  # until there is no more to run
        return run

    return prepare


INSTALLS = {OURS: [os.fspath(ROOT)], PEFT: ["torch", "peft", "transformers"]}


def _fresh(contender: str, figure: Callable[[Path, Path], float]) -> Any:
    def prepare(base: Base) -> Run:
        kept = tempfile.TemporaryDirectory()
        paths = write(base, Path(kept.name))
        out, environment, cache = (Path(kept.name, part) for part in ("out", "env", "cache"))

        def run() -> float:
            for folder in (out, environment, cache):
                shutil.rmtree(folder, ignore_errors=True)
            _do([sys.executable, "-m", "venv", os.fspath(environment)])
            python = os.fspath(environment / "bin" / "python")
            _do([python, "-m", "pip", "install", "--quiet", *INSTALLS[contender]])
            merge = [contender, *map(os.fspath, paths), os.fspath(out)]
            _do([python, "-m", "tests.benchmarks.merge", *merge], NUMBA_CACHE_DIR=os.fspath(cache))
            if contender == OURS:
                check_compiled(cache)
            return figure(out, environment)

        run.kept = kept  # type: ignore[attr-defined]
        return run

    return prepare


def _do(command: list[str], **variables: str) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=os.environ | variables)


def _installed(_: Path, environment: Path) -> float:
    """The bytes of all files in the environment."""
    return float(sum(f.lstat().st_size for f in environment.rglob("*") if f.is_file()))


def _sum(out: Path, _: object[str, Any]) -> float:
    """Of magnitudes in one of the merged tensors, to compare."""
    from minigrad.io import open_tensors

    with open_tensors(out) as tensors:
        return float(np.abs(tensors.read("layers.1.self_attn.q_proj.weight", np.float64)).sum())


def _bytes(_: object, facts: dict[str, Any]) -> float:
    return float(facts["bytes"])


def _both(figure: Callable[[Path, dict[str, Any]], float]) -> dict[str, Contender]:
    needs = "torch", "peft", "transformers"
    return {OURS: Contender(_merge(OURS, figure)), PEFT: Contender(_merge(PEFT, figure), needs)}


def _both_fresh(figure: Callable[[Path, Path], float]) -> dict[str, Contender]:
    return {name: Contender(_fresh(name, figure)) for name in INSTALLS}


POINTS = [Point(base.label, base) for base in (SMALL, LARGE)]

WORKLOADS = {
    "merge": Workload(
        "a process that merges an adapter into a base and writes it",
        _both(_sum),
        POINTS,
        [Goal(PEFT, 1.0)],
        tolerance=SAME,
        seconds=SECOND,
        rounds=3,
    ),
    "memory_merge": Workload(
        "the most memory of that process",
        _both(_bytes),
        POINTS,
        [Goal(PEFT, 2.0)],
        steps=0,
        rounds=2,
        unit="B",
    ),
    "fresh": Workload(
        "from no environment to a merged base",
        _both_fresh(_sum),
        POINTS[:1],
        [Goal(PEFT, 1.0)],
        tolerance=SAME,
        seconds=SECOND,
        rounds=3,
    ),
    "fresh_installed": Workload(
        "the bytes of that environment",
        _both_fresh(_installed),
        POINTS[:1],
        [Goal(PEFT, 1.0)],
        steps=0,
        rounds=1,
        unit="B",
    ),
}
