// The list of the op rooms: each gives its operators for ONNX Runtime from its ort_op.cc (linear from ort_pointwise.cc too).
#pragma once

#include <vector>

struct OrtCustomOp;

namespace handheld {

// The operators live as long as the process.
std::vector<const OrtCustomOp*> group_norm_ops();
std::vector<const OrtCustomOp*> winograd_conv_ops();
std::vector<const OrtCustomOp*> gelu_ops();
std::vector<const OrtCustomOp*> linear_ops();
std::vector<const OrtCustomOp*> pointwise_conv_ops();
std::vector<const OrtCustomOp*> attention_ops();

}  // namespace handheld
