// A linear layer in double: what the kernels are checked against; and weights as a package has them.
#pragma once

#include <cmath>
#include <vector>

#include "../testing.h"
#include "linear.h"

namespace handheld::testing {

struct Packed {
  std::vector<float> floats;
  std::vector<std::uint16_t> bfloats;
  const void* data() const { return bfloats.empty() ? static_cast<const void*>(floats.data()) : bfloats.data(); }
};

// Packs w [depth, columns]; as bfloat16 it makes w what the kernels then have.
inline Packed pack(std::vector<float>& w, std::int64_t depth, std::int64_t columns, bool bfloat16) {
  const std::int64_t together = bfloat16 ? 2 : 1, steps = (depth + together - 1) / together;
  const auto size = static_cast<std::size_t>((columns + kPanelColumns - 1) / kPanelColumns * steps * kPanelColumns * together);
  Packed packed;
  if (bfloat16) {
    packed.bfloats.assign(size, 0);
  } else {
    packed.floats.assign(size, 0);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t n = 0; n < columns; ++n) {
      float& value = w[static_cast<std::size_t>(k * columns + n)];
      const std::int64_t row = n / kPanelColumns * steps + k / together, lane = n % kPanelColumns;
      const auto at = static_cast<std::size_t>((row * kPanelColumns + lane) * together + k % together);
      if (bfloat16) {
        packed.bfloats[at] = bfloat16_of(value);
        value = float_of(packed.bfloats[at]);
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

// One value before GELU. `w` is [depth, columns]; `rounds` where the kernel rounds the activations.
inline Expected expected_product(const Linear& task, const std::vector<float>& w, std::int64_t row, std::int64_t column, bool rounds) {
  double y = task.bias[column], sum = 0, beside = std::abs(y);
  for (std::int64_t k = 0; k < task.depth; ++k) {
    const double product = static_cast<double>(task.x[row * task.depth + k]) * w[static_cast<std::size_t>(k * task.columns + column)];
    y += product;
    sum += std::abs(product);
  }
  if (task.residual != nullptr) {
    const double residual = task.residual[row * task.columns + column];
    y += residual;
    beside += std::abs(residual);
  }
  return {y, static_cast<double>(task.depth + 4) * std::ldexp(sum + beside, -24) + (rounds ? std::ldexp(sum, -8) : 0) + 1e-37};
}

inline Expected expected_linear(const Linear& task, const std::vector<float>& w, std::int64_t row, std::int64_t column, bool rounds) {
  const Expected value = expected_product(task, w, row, column, rounds);
  if (task.form != LinearForm::kGeglu) return value;
  const Expected gate = expected_product(task, w, row, column + task.columns / 2, rounds);
  const double gelu = gate.y * std::erfc(-gate.y * std::sqrt(0.5)) / 2;
  const double unit = std::ldexp(std::abs(gelu), -23) * (4 + gate.y * gate.y / 3);
  const double of_gelu = 1.13 * gate.allowed + unit;
  return {value.y * gelu, std::abs(value.y) * of_gelu + value.allowed * (std::abs(gelu) + of_gelu) + 1e-37};
}

}  // namespace handheld::testing
