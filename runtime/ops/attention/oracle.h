// Attention in double, in the plainest way: what the kernels are checked against.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../testing.h"
#include "attention.h"

namespace handheld::testing {

constexpr double kOwnError = 2, kScoreError = 1, kWeightError = 1.0 / 512;  // as attention.h says

struct Expected {
  std::vector<double> y;  // [dim]
  double allowed;         // how far a kernel may be from each of them
};

// A task with the operands that products of 16-bit numbers have: scale * q, k and v rounded.
struct Rounded {
  Rounded(const Attention& of, Operands operands) : task(of) {
    if (operands == Operands::kFloat32) return;
    const auto round = [operands](const float* from, std::int64_t count, float scale) {
      std::vector<float> result(from, from + count);
      for (float& value : result) value = rounded(value * scale, operands);
      return result;
    };
    const std::int64_t width = of.batch * of.heads * of.dim;
    q = round(of.q, of.queries * width, of.scale);
    k = round(of.k, of.keys * width, 1);
    v = round(of.v, of.keys * width, 1);
    task.q = q.data();
    task.k = k.data();
    task.v = v.data();
    task.scale = 1;
  }
  std::vector<float> q, k, v;
  Attention task;
};

// What one query of one head gets, and the error that attention.h allows. `operands`: of the kernel, which
// rounds the weights to them too; those of the task are as `Rounded` makes them.
inline Expected expected_query(const Attention& task, std::int64_t image, std::int64_t head, std::int64_t query,
                               Operands operands = Operands::kFloat32) {
  const double unit = operands == Operands::kFloat16 ? 1.0 / (1 << 11) : 1.0 / (1 << 23);
  const std::int64_t width = task.heads * task.dim;
  const float* const q = task.q + (image * task.queries + query) * width + head * task.dim;
  const auto row = [&](const float* of, std::int64_t key) { return of + (image * task.keys + key) * width + head * task.dim; };

  std::vector<double> scores, magnitudes;
  double most = -INFINITY;
  for (std::int64_t key = 0; key < task.keys; ++key) {
    double score = 0, magnitude = 0;
    for (std::int64_t i = 0; i < task.dim; ++i) {
      const double product = static_cast<double>(q[i]) * static_cast<double>(task.scale) * static_cast<double>(row(task.k, key)[i]);
      score += product;
      magnitude += std::abs(product);
    }
    if (task.mask != nullptr) {
      const double mask = task.mask[image * task.mask_image_stride + head * task.mask_head_stride + query * task.mask_query_stride +
                                    key * task.mask_key_stride];
      score += mask;
      magnitude += std::abs(mask);
    }
    scores.push_back(score);
    magnitudes.push_back(magnitude);
    most = std::max(most, score);
  }
  Expected expected{std::vector<double>(static_cast<std::size_t>(task.dim), 0.0), 0};
  if (most == -INFINITY) return expected;

  double sum = 0, largest_score = 0, largest_value = 0;
  for (std::int64_t key = 0; key < task.keys; ++key) {
    const double term = std::exp(scores[static_cast<std::size_t>(key)] - most);
    sum += term;
    for (std::int64_t i = 0; i < task.dim; ++i) {
      const double value = row(task.v, key)[i];
      expected.y[static_cast<std::size_t>(i)] += term * value;
      largest_value = std::max(largest_value, std::abs(value));
    }
    if (term > 0) largest_score = std::max(largest_score, magnitudes[static_cast<std::size_t>(key)]);
  }
  for (double& each : expected.y) each /= sum;
  const double of_weights = operands == Operands::kBfloat16 ? kWeightError : 0;
  expected.allowed = largest_value * (unit * (kOwnError + kScoreError * largest_score) + of_weights);
  return expected;
}

}  // namespace handheld::testing
