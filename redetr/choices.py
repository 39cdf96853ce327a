"""The values that settings and flags choose from, apart from the code that they steer, because help
and completion do without PyTorch."""

from typing import Literal

Augment = Literal["plain", "detr", "photo", "strong", "aerial"]
ClassLoss = Literal["mal", "varifocal"]  # of variants with sigmoid scores
ClassNormalization = Literal["global", "per_rank"]
Compression = Literal["none", "bf16"]  # of gradients between ranks
OptimizerName = Literal["muon", "adamw"]
Precision = Literal["auto", "fp32", "bf16", "fp64"]  # in which a run computes
Schedule = Literal["cosine", "step", "constant"]

ExportFormat = Literal["onnx", "openvino", "torch"]
ExportPrecision = Literal["fp32", "fp16", "int8"]  # of the numbers in an exported file
