"""Old names of modules: importing one raises an error that gives the new name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

SINCE_0_2 = {
    "minigrad.call": "minigrad.core.codegen and minigrad.core.tensor",
    "minigrad.checkpoint": "minigrad.core.checkpoint",
    "minigrad.diagnostics.anomaly": "minigrad.diagnostics.anomaly_detection and minigrad.ops.hints",
    "minigrad.diagnostics.draws": "minigrad.diagnostics.restored",
    "minigrad.diagnostics.gradcheck": "minigrad.diagnostics.gradient_check",
    "minigrad.diagnostics.liveness": "minigrad.diagnostics.gradient_flow",
    "minigrad.diagnostics.origin": "minigrad.diagnostics.recorder",
    "minigrad.diagnostics.receipt": "minigrad.diagnostics.cost_receipt",
    "minigrad.diagnostics.step": "minigrad.diagnostics.loss_call",
    "minigrad.diagnostics.tables": "minigrad.tables",
    "minigrad.engine": "minigrad.core.backward",
    "minigrad.functional.attention": "minigrad.functional.neural",
    "minigrad.functional.fused_losses": "minigrad.functional.losses",
    "minigrad.functional.products": "minigrad.functional.linalg",
    "minigrad.graph": "minigrad.core.node",
    "minigrad.history": "minigrad.training.history",
    "minigrad.io.reader": "minigrad.io.tensor_file",
    "minigrad.io.state": "minigrad.io.tensor_file",
    "minigrad.io.tensors": "minigrad.io.tensor_file",
    "minigrad.io.writer": "minigrad.io.tensor_file",
    "minigrad.kernels.blocks": "minigrad.kernels.gemm.blocking",
    "minigrad.kernels.codes": "minigrad.kernels.nf4",
    "minigrad.kernels.dots": "minigrad.kernels.gemm.skinny",
    "minigrad.kernels.dropout": "minigrad.kernels.elementwise",
    "minigrad.kernels.heads": "minigrad.kernels.attention",
    "minigrad.kernels.heap": "minigrad.kernels",
    "minigrad.kernels.indexing": "minigrad.kernels.elementwise",
    "minigrad.kernels.kernel": "minigrad.kernels.jit",
    "minigrad.kernels.loops": "minigrad.kernels.gemm.macrokernel",
    "minigrad.kernels.maths": "minigrad.kernels.vector_math",
    "minigrad.kernels.micro": "minigrad.kernels.gemm.microkernel",
    "minigrad.kernels.normal": "minigrad.kernels.activation",
    "minigrad.kernels.pack": "minigrad.kernels.gemm.packing",
    "minigrad.kernels.panels": "minigrad.kernels.gemm.prepacked",
    "minigrad.kernels.places": "minigrad.kernels.optim",
    "minigrad.kernels.products": "minigrad.kernels.gemm.products",
    "minigrad.kernels.scores": "minigrad.kernels.attention",
    "minigrad.kernels.streams": "minigrad.kernels.gemm.skinny",
    "minigrad.memory": "minigrad.versions and minigrad.readonly",
    "minigrad.methods": "minigrad.operators",
    "minigrad.mode": "minigrad.core.grad_mode and minigrad.core.observers",
    "minigrad.nn.containers": "minigrad.nn.layers",
    "minigrad.nn.normalization": "minigrad.nn.layers",
    "minigrad.nn.transformer": "minigrad.nn.attention",
    "minigrad.op": "minigrad.core.op",
    "minigrad.ops.axes": "minigrad.ops.shape",
    "minigrad.ops.indexing": "minigrad.ops.shape",
    "minigrad.ops.ordering": "minigrad.ops.comparison",
    "minigrad.ops.quantized": "minigrad.ops.products",
    "minigrad.ops.trigonometric": "minigrad.ops.elementwise",
    "minigrad.optim.adam": "minigrad.optim.descent",
    "minigrad.optim.sgd": "minigrad.optim.descent",
    "minigrad.summation": "minigrad.core.blocked_sum",
    "minigrad.tensor": "minigrad.core.tensor",
    "minigrad.trainer": "minigrad.training.trainer",
    "minigrad.trainer_state": "minigrad.training.checkpoint_file",
    "minigrad.viz.album": "minigrad.viz.previews",
    "minigrad.viz.gradients": "minigrad.viz.plots",
    "minigrad.viz.names": "minigrad.viz.graph_view",
    "minigrad.viz.page_data": "minigrad.viz.page",
    "minigrad.viz.scene": "minigrad.viz.graph_view",
    "minigrad.viz.tape": "minigrad.diagnostics.recorder",
    "minigrad.viz.values": "minigrad.viz.graph_view",
    "minigrad.viz.walk": "minigrad.viz.passes",
    "minigrad.viz.wrong_ways": "minigrad.viz.passes",
    "lora.adapted": "lora.adapted_layer",
    "lora.attach": "lora.attaching",
    "lora.attachment.record": "lora.attachment.state",
    "lora.attachment.replacing": "lora.attachment.state",
    "lora.attachment.report": "lora.attaching and lora.attachment.plan",
    "lora.attachment.whole": "lora.frozen and lora.attachment.state",
    "lora.certificate.certificate": "lora.certificate.measuring",
    "lora.certificate.certify": "lora.certificate.measuring",
    "lora.certificate.merging": "lora.certificate.layers",
    "lora.certificate.storage": "lora.certificate.rounding",
    "lora.disk": "lora.offline",
    "lora.extract": "lora.extraction",
    "lora.factors": "lora.spectra",
    "lora.files": "lora.peft",
    "lora.layer": "lora.linear",
    "lora.merge": "lora.merging",
    "lora.merged": "lora.adapted_layer",
    "lora.quantize": "lora.quantization",
    "lora.spectrum": "lora.spectra",
    "lora.switch": "lora.attaching",
    "lora.update": "lora.viz",
    "lora.verify": "lora.identities",
    "lora.weight": "lora.frozen",
}
"""Modules of version 0.1, each with where its contents are since version 0.2."""


class _OldNames(MetaPathFinder):
    """A finder that Python asks when no module of a name was found."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in SINCE_0_2:
            raise ModuleNotFoundError(
                f"there is no module `{name}` since minigrad 0.2; its contents are in "
                f"{SINCE_0_2[name]}",
                name=name,
            )
        return None


sys.meta_path.append(_OldNames())
