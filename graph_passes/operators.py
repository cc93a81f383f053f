"""The operators of the providers that ONNX Runtime ships no table of, as `domain:Operator`.

CUDA's: docs/OperatorKernels.md of ONNX Runtime, without those of recurrent networks, sequences, training and language models.

XNNPACK's for float32: xnnpack_execution_provider.cc. WebGPU's: docs/webgpu-operators.md of the package onnxruntime-web, without those
for integers and for language models alone.
"""

from __future__ import annotations

_XNNPACK = ("AveragePool", "Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool", "Resize", "Softmax")
_WEBGPU = (
    "Abs", "Add", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Conv",
    "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "MatMul", "MaxPool", "Mul", "Neg", "Not", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ScatterND", "Shape", "Sigmoid", "Sin",
    "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tan", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
)
_WEBGPU_CONTRIB = (
    "BiasAdd", "BiasSplitGelu", "FastGelu", "FusedConv", "Gelu", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention",
    "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
)
_CUDA = (
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Compress", "Concat",
    "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu",
    "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish", "Identity", "If",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
    "Loop", "MatMul", "MatMulInteger", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad",
    "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "ScatterElements", "ScatterND",
    "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
)
_CUDA_CONTRIB = (
    "Attention", "BiasAdd", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "FastGelu", "FusedConv", "FusedMatMul", "Gelu", "GroupNorm",
    "MatMulNBits", "MultiHeadAttention", "NhwcConv", "QuickGelu", "SkipGroupNorm", "SkipLayerNormalization",
)

XNNPACK = frozenset(f"ai.onnx:{name}" for name in _XNNPACK)
WEBGPU = frozenset((*(f"ai.onnx:{name}" for name in _WEBGPU), *(f"com.microsoft:{name}" for name in _WEBGPU_CONTRIB)))
CUDA = frozenset((*(f"ai.onnx:{name}" for name in _CUDA), *(f"com.microsoft:{name}" for name in _CUDA_CONTRIB)))
