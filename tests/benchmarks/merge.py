"""A process that merges an adapter into a base and ends: `python -m tests.benchmarks.merge ...`.

Prints, as JSON, the most memory that the process has had.
"""

from __future__ import annotations

import json
import sys

from tests.benchmarks.machine import most_memory
from tests.benchmarks.workload import OURS

SHARD = 500_000_000  # bytes, at most


def merge(contender: str, base: str, adapter: str, out: str) -> None:
    """From files to files, as a user would do it with the library."""
    if contender == OURS:
        from lora.__main__ import main as lora_main

        if lora_main(["merge", base, adapter, out, "--json"]):
            raise SystemExit(1)
        return
    from peft import PeftModel
    from transformers import AutoModel

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(out, max_shard_size=SHARD)


if __name__ == "__main__":
    merge(*sys.argv[1:])
    print(json.dumps({"bytes": most_memory()}))
