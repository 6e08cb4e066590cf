"""Read a language model from one GGUF file: metadata, configuration, and weights one at a time.

GGUF is the format of llama.cpp: a header with metadata and the name, shape, type and offset of each
tensor, and then the bytes of the tensors. The header is read here, because the reader of the gguf
package needs seconds for a vocabulary, and never ends on some broken files. The package converts
weights in few bits to float32, some rows at a time. Weights in float32, float16 and bfloat16 are
read without conversion.

For some architectures, llama.cpp rotates neighbouring elements of a head, but transformers rotates
the two halves of a head. So the rows of query and key projections are reordered for transformers.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora.frozen import strips
from lora.text.architecture import (
    CLASSES,
    ModelConfig,
    check_shapes,
    config_from_json,
    expected_shapes,
    rotary_frequencies,
)
from minigrad.checks import check_problems
from minigrad.io import TensorFile, TensorInfo
from minigrad.io.tensor_file import bounds, check_is_no_pointer
from minigrad.io.tensor_info import NAMES
from minigrad.packages import package

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers in metadata, as format characters of `struct`."""

_STRING, _ARRAY = 8, 9

_CONFIG = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""The required keys of metadata, by the corresponding keys of `config.json`."""

_ABSENT = (
    *("expert_count", "logit_scale", "residual_scale", "embedding_scale", "attention.scale"),
    *("attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"),
    *("attention.max_alibi_bias", "rope.scaling.attn_factor", "use_parallel_residual"),
)
"""Options that change the result and are not implemented."""

_FACTORS = "rope_freqs.weight"

_PERMUTED = ("llama", "mistral", "smollm3")
"""The architectures in which llama.cpp reorders the rows of query and key projections."""

_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The parameters of Llama 3's scaling; a GGUF file has only the factors that result from them."""


class StoredTensor(NamedTuple):
    """The type and shape of a tensor, the offset of its bytes in the file, and their number."""

    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GGUFFile:
    """A GGUF file: its metadata by their keys, and its tensors by llama.cpp's names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a GGUF file, is truncated, or a tensor has a type that the
            gguf package cannot convert to floats.
        ImportError: if the package gguf is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
        with open(self.path, "rb") as file:
            check_is_no_pointer(file)
            try:
                self._read_header(_Reader(file, self.path.stat().st_size))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{os.fspath(path)!r} cannot be read: {error!s:.500}") from None

    def _read_header(self, reader: _Reader) -> None:
        gguf, types, size = package("gguf"), _types(), reader.left
        magic, version = reader.take(4), reader.number("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(
                f"it begins with {magic!r} and version {version}, not GGUF 2 or 3; a base is a "
                f"GGUF file, or a Hugging Face folder, and an adapter a GGUF file, or PEFT's folder"
            )
        tensors, facts = reader.number("Q"), reader.number("Q")
        self.metadata = {key: reader.value(key) for key in (reader.text() for _ in range(facts))}
        self.tensors: dict[str, StoredTensor] = {}
        for _ in range(tensors):
            name = reader.text()
            shape = tuple(reader.number("Q") for _ in range(reader.number("I")))[::-1]
            kind, offset = reader.number("I"), reader.number("Q")
            if kind not in types:
                known = {each.value: each.name for each in gguf.GGMLQuantizationType}
                raise ValueError(
                    f"{name:.100} has type {known.get(kind, kind)}, which the gguf package cannot "
                    f"convert to floats; take a file of {', '.join(types.values())}"
                )
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if 0 in shape or not shape or shape[-1] % block or name in self.tensors:
                raise ValueError(f"{name!r:.100} is there twice, or cannot have the shape {shape}")
            nbytes = math.prod(shape) // block * block_bytes
            self.tensors[name] = StoredTensor(types[kind], shape, offset, nbytes)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its general.alignment is {alignment!r:.60}")
        end = begin = -(-(size - reader.left) // alignment) * alignment
        for name, tensor in sorted(self.tensors.items(), key=lambda each: each[1].offset):
            offset = begin + tensor.offset
            if offset % alignment or offset < end:  # inside of the tensor before
                raise ValueError(f"{name} begins at a wrong offset; fetch it again")
            end = offset + tensor.nbytes
            if end > size:
                raise ValueError(f"it ends inside of {name}; fetch it again")
            self.tensors[name] = tensor._replace(offset=offset)

    @property
    def is_adapter(self) -> bool:
        """Whether the file has an adapter, and not a model."""
        return bool(self.metadata.get("general.type") == "adapter")

    def read(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read a tensor, or a slice of its rows.

        Plain floats keep their dtype, and other types are converted to float32. A ValueError is
        raised if the slice has a step, or the file has been truncated since it was opened.
        """
        tensor, gguf = self.tensors[name], package("gguf")
        begin, end = bounds(rows, tensor.shape[0])
        if len(tensor.shape) == 1 and rows != slice(None):
            return self.read(name)[begin:end]
        kind, plain = gguf.GGMLQuantizationType[tensor.type], NAMES.get(tensor.type)
        dtype = package("ml_dtypes").bfloat16 if plain == "bfloat16" else plain or "float32"
        shape, size = (end - begin, *tensor.shape[1:]), tensor.nbytes // tensor.shape[0]
        out = np.empty((math.prod(shape[:-1]), shape[-1]), dtype)
        row_bytes = tensor.nbytes // math.prod(tensor.shape[:-1])
        with open(self.path, "rb") as file:
            file.seek(tensor.offset + begin * size)
            for strip in strips(out.shape):
                part = np.empty((strip.stop - strip.start, row_bytes), np.uint8)
                if file.readinto(part.reshape(-1).data) < part.nbytes:
                    raise ValueError(f"{os.fspath(self.path)!r} ends inside of {name}")
                out[strip] = part.view(dtype) if plain else gguf.dequantize(part, kind)
        return out.reshape(shape)


@cache
def _types() -> dict[int, str]:
    """Return the names of the types that the gguf package can convert to floats, by number."""
    gguf, found = package("gguf"), dict[int, str]()
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        with suppress(NotImplementedError):
            gguf.dequantize(np.zeros(size, np.uint8), kind)  # a block of zeros
            found[kind.value] = kind.name
    return found


class _Reader:
    """Reads a header value by value; an error is raised at the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def take(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise ValueError("it ends inside of its header; fetch it again")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, key: str) -> Any:
        kind, count = self.number("I"), None
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return self.text() if count is None else [self.text() for _ in range(count)]
        if kind not in _CODES:
            raise ValueError(f"{key:.100} has a value of type {kind}, which is unknown")
        if count is None:
            return self.number(_CODES[kind])
        size = count * struct.calcsize(_CODES[kind])
        return list(struct.unpack(f"<{count}{_CODES[kind]}", self.take(size)))


def check_is_model(file: GGUFFile) -> None:
    """Raise a ValueError if a file has an adapter in place of a model."""
    if file.is_adapter:
        raise ValueError(
            f"{os.fspath(file.path)!r} is an adapter; give its base, a Hugging Face folder or a "
            f"GGUF file, and the adapter as a folder, which python -m lora convert makes of it"
        )


def config_json(file: GGUFFile) -> dict[str, Any]:
    """Return the `config.json` that corresponds to the metadata of a file.

    A ValueError is raised if the file has an adapter, the model is not supported, or the metadata
    are wrong.
    """
    check_is_model(file)
    metadata = file.metadata
    architecture = str(metadata.get("general.architecture"))
    if architecture not in CLASSES:
        raise ValueError(
            f"the architecture {architecture!r:.60} of {os.fspath(file.path)!r} is not supported; "
            f"there are {', '.join(CLASSES)}"
        )

    def value(key: str) -> Any:
        found = metadata.get(f"{architecture}.{key}")
        # Convert the float32 9.999999747378752e-06 back to the decimal number 1e-5.
        return float(str(np.float32(found))) if isinstance(found, float) else found

    scaling, width = value("rope.scaling.type"), value("attention.key_length")
    window, names = value("attention.sliding_window"), file.tensors
    kind = "mistral" if architecture == "llama" and window else architecture
    rope = {"rope_type": "default", "rope_theta": value("rope.freq_base") or 10000.0}
    factor = value("rope.scaling.factor") or value("rope.scale_linear")  # its old name
    if scaling in (None, "linear") and factor:  # linear is llama.cpp's default
        rope |= {"rope_type": "linear", "factor": factor}
    words = metadata.get("tokenizer.ggml.tokens")
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    found = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **{name: value(key) for name, key in _CONFIG.items()},
        "vocab_size": value("vocab_size") or (len(words) if isinstance(words, list) else None),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": width,
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "sliding_window": window,
        **({"use_sliding_window": True, "max_window_layers": 0} if window else {}),
        "rope_parameters": rope,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "eos_token_id": [x for i, x in enumerate(ends) if x is not None and x not in ends[:i]],
    }
    what = f"{os.fspath(file.path)!r} is not supported, since it has"
    problems = [f"{architecture}.{key} {value(key)!r:.60}" for key in _ABSENT if value(key)]
    if metadata.get("split.count", 1) != 1:
        problems.append("other parts; join them with llama-gguf-split --merge")
    problems += [f"no {architecture}.{key}" for key in _CONFIG.values() if value(key) is None]
    if value("attention.causal") is False:
        problems.append(f"{architecture}.attention.causal False")
    if scaling not in (None, "none", "linear"):
        problems.append(f"{architecture}.rope.scaling.type {scaling!r:.60}")
    check_problems(what, problems)
    config = config_from_json(found)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if value(key) not in (None, config.head_dim):
            problems.append(f"{architecture}.{key} {value(key)!r:.60}, not {config.head_dim}")
    if _FACTORS in names and rope["rope_type"] == "linear":
        problems.append(f"{_FACTORS} beside linear scaling")
    elif _FACTORS in names:
        factors = file.read(_FACTORS).reshape(-1)
        rope |= {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
        frequencies = partial(rotary_frequencies, config.head_dim, config.rope_theta)
        wanted = frequencies(None) / frequencies(rope)
        if factors.shape != wanted.shape or not np.allclose(factors, wanted, 1e-4):
            problems.append(f"{_FACTORS} that are not those of Llama 3's scaling")
    check_problems(what, problems)
    return found


def read_config(file: GGUFFile) -> ModelConfig:
    """Return the configuration of the model in a file; errors are those of `config_json`."""
    sizes = [(NAMES.get(each.type, "float32"), each.nbytes) for each in file.tensors.values()]
    return config_from_json(config_json(file), None, sizes)


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Return llama.cpp's name of each parameter, by transformers' name."""
    gguf = package("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)  # all names
    return {name: table.get_name(name, (".weight", ".bias")) for name in expected_shapes(config)}


def swap_heads(rows: NDArray[Any], name: str, config: ModelConfig, *, back: bool) -> NDArray[Any]:
    """Reorder the rows of a projection from transformers' order to llama.cpp's, or `back`.

    Only query and key projections of some architectures change. The rows must be complete heads.
    """
    if config.architecture not in _PERMUTED or not ("q_proj" in name or "k_proj" in name):
        return rows
    sizes = (config.head_dim // 2, 2) if back else (2, config.head_dim // 2)
    return rows.reshape(-1, *sizes, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class GGUFTensors(TensorFile):
    """The weights in a GGUF file, with the names and the order of rows of a Hugging Face folder.

    A ValueError is raised if tensors are missing, unexpected or mis-shaped, or the model is not
    supported.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.config = file, read_config(file)
        self.path, self.location = file.path, repr(os.fspath(file.path))
        self.metadata, self.has_checksum, self._has_right_header = {}, False, True
        self._stack = ExitStack()  # is empty, because the file is open only while it is read
        known = {theirs: name for name, theirs in gguf_names(self.config).items()}
        self._theirs = {known.get(name, name): name for name in file.tensors if name != _FACTORS}
        found = {name: file.tensors[theirs] for name, theirs in self._theirs.items()}
        self.tensors = {
            name: TensorInfo(name, NAMES.get(tensor.type, "float32"), tensor.shape)
            for name, tensor in found.items()
        }
        check_shapes(self.location, self.tensors, self.config)

    def stored(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read a tensor, or some of its rows, in its dtype, which may be bfloat16 of ml_dtypes."""
        first, last = bounds(rows, self.info(name).shape[0])
        d = self.config.head_dim
        begin = first // d * d
        part = slice(begin, -(-last // d) * d)  # complete heads
        found = swap_heads(self.file.read(self._theirs[name], part), name, self.config, back=True)
        return found[first - begin : last - begin]

    def _read(self, info: TensorInfo, rows: slice) -> NDArray[Any]:
        found = self.stored(info.name, rows)
        return found.astype(np.float32) if info.dtype == "bfloat16" else found

    def raw(self, name: str) -> Iterator[bytes]:
        """Read the bytes of a tensor in its dtype, in parts; see `Tensors.raw`."""
        for rows in strips(self.info(name).shape):
            yield self.stored(name, rows).tobytes()
