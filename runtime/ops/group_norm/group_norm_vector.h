// The kernel of group_norm.h, written once for any vector of vector.h.
//
// A group is read from memory once, for its moments, and then once more, from the cache where it fits. The moments are taken in blocks
// that stay in the first-level cache: of each block first the mean, then the sums of the differences from it, so that a large mean costs
// no digits; blocks are joined in double (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979).
#pragma once

#include <cstdint>

#include "../vector_math.h"
#include "group_norm.h"

namespace handheld {
namespace {

constexpr int kChains = 4;      // as many sums as hide the latency of an addition
constexpr int kAdditions = 32;  // into one float before it is added to a double: so many roundings at most, and the block fits in any cache

struct Moments {
  double count;
  double mean;
  double squares;  // sum of the squared differences from the mean
};

template <typename V>
inline Moments moments_of_block(const float* x, std::int64_t size) {
  using Register = typename V::Register;
  const Register zero = V::broadcast(0.0f);
  const std::int64_t whole = size - size % (kChains * V::lanes);

  const auto total = [](const Register (&chain)[kChains]) {
    return V::sum(V::add(V::add(chain[0], chain[1]), V::add(chain[2], chain[3])));
  };
  const auto part = [&](std::int64_t at) { return static_cast<int>(size - at < V::lanes ? size - at : V::lanes); };

  Register sums[kChains] = {zero, zero, zero, zero};
  for (std::int64_t at = 0; at < whole; at += kChains * V::lanes) {
    for (int i = 0; i < kChains; ++i) sums[i] = V::add(sums[i], V::load(x + at + i * V::lanes));
  }
  for (std::int64_t at = whole; at < size; at += V::lanes) sums[0] = V::add(sums[0], V::load_part(x + at, part(at), 0.0f));
  const float center = static_cast<float>(total(sums) / static_cast<double>(size));

  // `center` is rounded, so the differences have a small mean of their own: it is taken out at the end
  const Register middle = V::broadcast(center);
  Register differences[kChains] = {zero, zero, zero, zero}, squares[kChains] = {zero, zero, zero, zero};
  const auto take = [&](int chain, Register values) {
    const Register difference = V::subtract(values, middle);
    differences[chain] = V::add(differences[chain], difference);
    squares[chain] = V::multiply_add(difference, difference, squares[chain]);
  };
  for (std::int64_t at = 0; at < whole; at += kChains * V::lanes) {
    for (int i = 0; i < kChains; ++i) take(i, V::load(x + at + i * V::lanes));
  }
  for (std::int64_t at = whole; at < size; at += V::lanes) take(0, V::load_part(x + at, part(at), center));

  const double count = static_cast<double>(size), shift = total(differences) / count;
  return {count, center + shift, total(squares) - shift * shift * count};
}

inline Moments join(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, difference = b.mean - a.mean;
  return {count, a.mean + difference * (b.count / count), a.squares + b.squares + difference * difference * (a.count * b.count / count)};
}

template <typename V>
inline Moments moments_of(const float* x, std::int64_t size) {
  constexpr std::int64_t kBlock = kAdditions * kChains * V::lanes;
  const auto block = [&](std::int64_t at) { return moments_of_block<V>(x + at, size - at < kBlock ? size - at : kBlock); };
  Moments all = block(0);
  for (std::int64_t at = kBlock; at < size; at += kBlock) all = join(all, block(at));
  return all;
}

// y = (x - center) * slope + offset over one channel
template <typename V, bool kSilu>
inline void normalize(const float* x, float* y, std::int64_t size, float center, float slope, float offset, bool stream) {
  using Register = typename V::Register;
  const Register middle = V::broadcast(center), factor = V::broadcast(slope), addend = V::broadcast(offset);
  const auto normalized = [&](Register values) {
    const Register result = V::multiply_add(V::subtract(values, middle), factor, addend);
    if constexpr (kSilu) return silu<V>(result);
    return result;
  };
  const std::int64_t whole = size - size % V::lanes;
  if (stream && reinterpret_cast<std::uintptr_t>(y) % (V::lanes * sizeof(float)) == 0) {
    for (std::int64_t at = 0; at < whole; at += V::lanes) V::stream(y + at, normalized(V::load(x + at)));
  } else {
    for (std::int64_t at = 0; at < whole; at += V::lanes) V::store(y + at, normalized(V::load(x + at)));
  }
  if (whole < size) {
    const int rest = static_cast<int>(size - whole);
    V::store_part(y + whole, normalized(V::load_part(x + whole, rest, 0.0f)), rest);
  }
}

template <typename V>
inline void group_norm(const GroupNorm& task, std::int64_t index) {
  const std::int64_t channels = task.channels / task.groups, size = channels * task.positions;
  if (size == 0) return;
  const float* x = task.x + index * size;
  float* y = task.y + index * size;

  const Moments moments = moments_of<V>(x, size);
  // rounding can leave a sum of squares a little below zero; what is not a number goes through
  const double variance = (moments.squares < 0 ? 0 : moments.squares) / moments.count;
  const double inverse_deviation = 1 / __builtin_sqrt(variance + static_cast<double>(task.epsilon));
  // The mean is subtracted in two parts: as a float first, which is exact where x is near it, and what that lacks with the bias.
  const float center = static_cast<float>(moments.mean);
  const double rest = moments.mean - static_cast<double>(center);

  const std::int64_t first = index % task.groups * channels;
  for (std::int64_t i = channels - 1; i >= 0; --i) {  // backwards: the channels read last are the ones that a small cache still has
    const double slope = inverse_deviation * static_cast<double>(task.scale[first + i]);
    const float offset = static_cast<float>(static_cast<double>(task.bias[first + i]) - rest * slope);
    const float* from = x + i * task.positions;
    float* to = y + i * task.positions;
    if (task.silu) {
      normalize<V, true>(from, to, task.positions, center, static_cast<float>(slope), offset, task.stream);
    } else {
      normalize<V, false>(from, to, task.positions, center, static_cast<float>(slope), offset, task.stream);
    }
  }
  if (task.stream) V::finish_streaming();
}

}  // namespace
}  // namespace handheld
