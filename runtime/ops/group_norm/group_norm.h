// Group normalization, optionally followed by SiLU: what a kernel takes and what it promises.
//
//   y = (x - mean) / sqrt(variance + epsilon) * scale + bias       (Wu and He, "Group Normalization", 2018, equation 1)
//
// with the mean and the population variance of each group of channels of each image; then y * sigmoid(y) where `silu` is set.
#pragma once

#include <cstdint>

#include "../cpu.h"

namespace handheld {

struct GroupNorm {
  const float* x;      // [batch, channels, positions]
  const float* scale;  // [channels]
  const float* bias;   // [channels]
  float* y;            // [batch, channels, positions], no part of x
  std::int64_t channels;
  std::int64_t positions;  // height * width
  std::int64_t groups;     // divides channels
  float epsilon;
  bool silu;
  bool stream;  // write past the caches: y is too large to stay there
};

// Normalizes one group: `index` is image * groups + group. Groups are independent of each other, so the caller deals them out to threads.
//
// Error against real arithmetic before SiLU: at most 1.5 * 2^-23 * ((|x - mean| / deviation + 1) * |scale| + |bias|), whatever the mean.
// No memory is allocated, and nothing outside the arrays is read or written.
using GroupNormKernel = void (*)(const GroupNorm& task, std::int64_t index);

GroupNormKernel group_norm_kernel(Isa isa);

// One per instruction set, in group_norm_<isa>.cc.
void group_norm_portable(const GroupNorm& task, std::int64_t index);
void group_norm_avx2(const GroupNorm& task, std::int64_t index);
void group_norm_avx512(const GroupNorm& task, std::int64_t index);
void group_norm_neon(const GroupNorm& task, std::int64_t index);

}  // namespace handheld
