// Group normalization in double, in the plainest way: what the kernels are checked against.
#pragma once

#include <cmath>
#include <vector>

#include "group_norm.h"

namespace handheld::testing {

struct Expected {
  double y;
  double allowed;  // how far a kernel may be from y
};

// The values of group `index` and the errors that group_norm.h allows.
inline std::vector<Expected> expected_group(const GroupNorm& task, std::int64_t index) {
  constexpr double kUnit = 1.0 / (1 << 23);
  const std::int64_t channels = task.channels / task.groups, size = channels * task.positions;
  const float* x = task.x + index * size;
  double mean = 0, variance = 0;
  for (std::int64_t i = 0; i < size; ++i) mean += x[i];
  mean /= static_cast<double>(size);
  for (std::int64_t i = 0; i < size; ++i) variance += (x[i] - mean) * (x[i] - mean);
  variance /= static_cast<double>(size);

  std::vector<Expected> expected;
  for (std::int64_t i = 0; i < size; ++i) {
    const std::int64_t channel = index % task.groups * channels + i / task.positions;
    const double normalized = (x[i] - mean) / std::sqrt(variance + static_cast<double>(task.epsilon));
    const double scale = task.scale[channel], bias = task.bias[channel];
    double y = normalized * scale + bias;
    double allowed = 1.5 * kUnit * ((std::abs(normalized) + 1) * std::abs(scale) + std::abs(bias));
    if (task.silu) {
      y = y / (1 + std::exp(-y));
      allowed = 1.1 * allowed + 2.5 * kUnit * std::abs(y) + 2.6e-37;  // the slope of SiLU is at most 1.1
    }
    expected.push_back({y, allowed});
  }
  return expected;
}

}  // namespace handheld::testing
