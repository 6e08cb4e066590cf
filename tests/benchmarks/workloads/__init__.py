"""What is measured, by theme. Each module has its `WORKLOADS`, by name."""

from tests.benchmarks.workload import Workload
from tests.benchmarks.workloads import (
    capture,
    convolution,
    engine,
    files,
    forward,
    images,
    language,
    lora,
    matmul,
    minilm,
    neural,
    ops,
    optim,
    process,
    recurrent,
    roof,
)

WORKLOADS: dict[str, Workload] = {
    **roof.WORKLOADS,
    **matmul.WORKLOADS,
    **neural.WORKLOADS,
    **ops.WORKLOADS,
    **convolution.WORKLOADS,
    **recurrent.WORKLOADS,
    **images.WORKLOADS,
    **optim.WORKLOADS,
    **lora.WORKLOADS,
    **capture.WORKLOADS,
    **minilm.WORKLOADS,
    **language.WORKLOADS,
    **engine.WORKLOADS,
    **forward.WORKLOADS,
    **process.WORKLOADS,
    **files.WORKLOADS,
}
