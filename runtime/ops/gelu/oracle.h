// GELU in double: what the kernels are checked against.
#pragma once

#include <cmath>

#include "gelu.h"

namespace handheld::testing {

struct Expected {
  double y;
  double allowed;  // how far a kernel may be from y, by gelu.h
};

inline double unit_of(double y) { return std::abs(y) / (1 << 23); }

// The least a float can differ by.
constexpr double kDenormal = 1.4012984643248171e-45;

inline Expected expected_gelu(double x) {
  const double y = x * std::erfc(-x * std::sqrt(0.5)) / 2;
  return {y, (3 + (x < 0 ? x * x / 3 : 0)) * unit_of(y) + 2 * kDenormal};
}

inline Expected expected_quick_gelu(double x) {
  const double y = x / (1 + std::exp(-static_cast<double>(1.702f) * x));
  // below -52 the exponential is beyond the largest float, and the kernel gives -0 where the true value is nearer to 0 than 2e-37
  return {y, (3 + std::abs(x)) * unit_of(y) + (x < -52 ? 2e-37 : 2 * kDenormal)};
}

inline Expected expected_geglu(double value, double gate) {
  const Expected gelu = expected_gelu(gate);
  const double y = value * gelu.y;
  return {y, std::abs(value) * gelu.allowed + unit_of(y) + 2 * kDenormal};
}

}  // namespace handheld::testing
