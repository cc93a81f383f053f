// A linear layer in double: what the kernels are checked against; and weights as a package has them.
#pragma once

#include <cmath>
#include <vector>

#include "../testing.h"
#include "linear.h"

namespace handheld::testing {

constexpr double kHalfChain = 16;  // products that a kernel sums up as float16 numbers

struct Packed {
  std::vector<float> floats;
  std::vector<std::uint16_t> pairs;
  const void* data() const { return pairs.empty() ? static_cast<const void*>(floats.data()) : pairs.data(); }
};

// Packs w [depth, columns], and makes it what the kernels then have.
inline Packed pack(std::vector<float>& w, std::int64_t depth, std::int64_t columns, Operands operands) {
  const bool narrow = operands != Operands::kFloat32;
  const std::int64_t together = narrow ? 2 : 1, steps = (depth + together - 1) / together;
  const auto size = static_cast<std::size_t>((columns + kPanelColumns - 1) / kPanelColumns * steps * kPanelColumns * together);
  Packed packed;
  if (narrow) {
    packed.pairs.assign(size, 0);
  } else {
    packed.floats.assign(size, 0);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t n = 0; n < columns; ++n) {
      float& value = w[static_cast<std::size_t>(k * columns + n)];
      const std::int64_t row = n / kPanelColumns * steps + k / together, lane = n % kPanelColumns;
      const auto at = static_cast<std::size_t>((row * kPanelColumns + lane) * together + k % together);
      if (narrow) {
        packed.pairs[at] = bits_of(value, operands);
        value = rounded(value, operands);
      } else {
        packed.floats[at] = value;
      }
    }
  }
  return packed;
}

struct Expected {
  double y;
  double allowed;  // how far a kernel may be from y, by linear.h
};

// The error of rounded activations and of what is rounded after them, by linear.h. `products` and `weights`: sums of sizes.
inline double rounding(std::int64_t depth, double products, double weights, Operands activations) {
  if (activations == Operands::kFloat32) return 0;
  if (activations == Operands::kBfloat16) return std::ldexp(products, -8);
  const double terms = static_cast<double>(depth), chain = std::fmin(kHalfChain, std::ceil(terms / 2));
  return (chain + 2) * std::ldexp(products, -11) + std::ldexp(terms + weights, -25);
}

// One value before GELU. `w` is [depth, columns]; `activations`: what the kernel makes of them.
inline Expected expected_product(const Linear& task, const std::vector<float>& w, std::int64_t row, std::int64_t column,
                                 Operands activations) {
  double y = task.bias[column], sum = 0, weights = 0, beside = std::abs(y);
  for (std::int64_t k = 0; k < task.depth; ++k) {
    const double weight = w[static_cast<std::size_t>(k * task.columns + column)], product = task.x[row * task.depth + k] * weight;
    y += product;
    sum += std::abs(product);
    weights += std::abs(weight);
  }
  if (task.residual != nullptr) {
    const double residual = task.residual[row * task.columns + column];
    y += residual;
    beside += std::abs(residual);
  }
  const double of_floats = static_cast<double>(task.depth + 4) * std::ldexp(sum + beside, -24);
  return {y, of_floats + rounding(task.depth, sum, weights, activations) + 1e-37};
}

inline Expected expected_linear(const Linear& task, const std::vector<float>& w, std::int64_t row, std::int64_t column,
                                Operands activations) {
  const Expected value = expected_product(task, w, row, column, activations);
  if (task.form != LinearForm::kGeglu) return value;
  const Expected gate = expected_product(task, w, row, column + task.columns / 2, activations);
  const double gelu = gate.y * std::erfc(-gate.y * std::sqrt(0.5)) / 2;
  const double unit = std::ldexp(std::abs(gelu), -23) * (4 + gate.y * gate.y / 3);
  const double of_gelu = 1.13 * gate.allowed + unit;
  return {value.y * gelu, std::abs(value.y) * of_gelu + value.allowed * (std::abs(gelu) + of_gelu) + 1e-37};
}

}  // namespace handheld::testing
