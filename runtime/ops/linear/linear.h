// y = x W + bias, with what directly follows it in a transformer: what a kernel takes and what it promises.
//
// The weights lie in the file in the order in which every kernel reads them, whatever its vectors: panels of 16 columns, each
//   [K][16] float32       or       [K / 2 rounded up][16][2] bfloat16 or float16, pairs along K; zeros where there is no column or no row.
#pragma once

#include <cstdint>

#include "../cpu.h"
#include "../operands.h"

namespace handheld {

constexpr std::int64_t kPanelColumns = 16;

enum class LinearForm {
  kPlain,  // y = x W + bias
  kAdd,    // y = x W + bias + residual
  kGeglu,  // y = v * gelu(g), [v, g] = x W + bias
};

struct Linear {
  const float* x;               // [rows, depth]
  const std::uint16_t* rounded; // x as the kernel rounds it, [rows, depth + depth % 2], where it does; else null
  const void* weights;          // panels of float32, bfloat16 or float16
  const float* bias;            // [columns]
  const float* residual;        // [rows, columns] for kAdd, else null
  float* y;                     // [rows, columns], for kGeglu [rows, columns / 2]; no part of the others
  std::int64_t rows, depth, columns;
  LinearForm form;              // for kGeglu half of the columns is a multiple of kPanelColumns
  // For pictures, whose channels are the depth and whose pixels are the columns; not for kGeglu:
  bool bias_of_rows = false;      // bias: [rows]
  std::int64_t stride = columns;  // from row to row of y and of the residual
};

// Rows first_row to last_row, and panels first_panel to last_panel of the result: for kGeglu panels of y.
struct LinearBlock {
  std::int64_t first_row, last_row, first_panel, last_panel;
};

// Error against real arithmetic, with s the sum over the depth of |x| |w|: at most (depth + 4) * 2^-24 * (s + |bias| + |residual|) where
// the activations are float32, and 2^-8 * s more where they are rounded to bfloat16; the weights are what they are. With float16
// weights (../float16.h): (n + 2) * 2^-11 * s more, for the activation, the n <= kHalfChain sums of a chain and that of two of them; and
// 2^-25 * (depth + sum of |w|) for what is below 2^-14, where float16 is a fixed point; infinite where a sum is beyond 65504.
// Before GELU, whose slope is at most 1.13 and whose own error is that of gelu.h.
// No memory is allocated, and nothing outside the arrays is read or written.
struct LinearKernel {
  void (*multiply)(const Linear& task, const LinearBlock& block);
  // Rounds rows of x to the operands; null where x is taken as it is.
  void (*round)(const float* x, std::uint16_t* to, std::int64_t rows, std::int64_t depth);
  // Packs the first `columns` of x [depth, stride] as weights are, rounding where `round` does; null where weights are widened.
  void (*pack)(const float* x, std::int64_t stride, std::int64_t depth, std::int64_t columns, void* to);
};

struct LinearKernels {
  LinearKernel float32, bfloat16, float16;  // for weights of that type
  std::int64_t panels;                      // that are computed together: a block has a multiple of them, but for the last

  const LinearKernel& of(Operands weights) const {
    return weights == Operands::kFloat32 ? float32 : weights == Operands::kBfloat16 ? bfloat16 : float16;
  }
};

LinearKernels linear_kernels(Isa isa);

// One set per instruction set, in linear_<isa>.cc.
extern const LinearKernels linear_portable;
extern const LinearKernels linear_avx2;
extern const LinearKernels linear_avx512;
extern const LinearKernels linear_avx512bf16;
extern const LinearKernels linear_neon;
extern const LinearKernels linear_neonfp16;
extern const LinearKernels linear_neonbf16;

}  // namespace handheld
