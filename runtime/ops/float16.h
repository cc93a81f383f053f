// Products of float16 numbers, with the same functions as those of bfloat16.h.
//
// 64-bit Arm multiplies and adds 8 float16 numbers where it takes 4 floats, and the products that it adds up as floats (FMLAL) are no more
// than those of floats. So the products of kHalfChain pairs are summed up as float16 numbers, the first of each pair in one lane and the
// second in another, both sums to one, and such sums as floats: rounding stays near that of the operands, and no sum of thousands of
// products comes near the 65504 at which float16 ends.
//
// Machines without such instructions round after every step as they do, so that a check on the one says what the other would make of a
// file, infinities too. They round to a float first and then to float16, which gives the other neighbour for fewer than one in 2^13 sums.
#pragma once

#include "vector.h"

namespace handheld {
namespace {

constexpr std::int64_t kHalfChain = 16;

template <typename V>
struct EmulatedHalves {
  using Vector = V;
  using Register = typename V::Register;
  static constexpr bool has_own_loop = true;

  static Register pair(Register first, Register second) { return V::halves(first, second); }
  static Register narrow(Register first, Register second) {
    float all[2 * V::lanes], even[V::lanes], odd[V::lanes];
    V::store(all, first);
    V::store(all + V::lanes, second);
    for (int i = 0; i < V::lanes; ++i) even[i] = all[2 * i], odd[i] = all[2 * i + 1];
    return V::halves(V::load(even), V::load(odd));
  }

  template <int kRows, int kVectors, typename Columns, typename Ahead>
  static void add_products(Register (&sums)[kRows][kVectors], const float* a, std::int64_t row_stride, std::int64_t step_stride,
                           Columns columns, std::int64_t steps, Ahead) {
    for (std::int64_t begin = 0; begin < steps; begin += kHalfChain) {
      const std::int64_t end = begin + kHalfChain < steps ? begin + kHalfChain : steps;
      for (int i = 0; i < kVectors; ++i) {
        for (int row = 0; row < kRows; ++row) {
          Register first = V::broadcast(0.0f), second = first;
          for (std::int64_t step = begin; step < end; ++step) {
            const Register left = V::broadcast(a[row * row_stride + step * step_stride]);
            const Register right = V::load(columns(step, i));
            first = V::round_half(V::multiply_add(V::first_half(left), V::first_half(right), first));
            second = V::round_half(V::multiply_add(V::second_half(left), V::second_half(right), second));
          }
          sums[row][i] = V::add(sums[row][i], V::round_half(V::add(first, second)));
        }
      }
    }
  }
};

#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)

struct NeonHalves {
  using Vector = NeonVector;
  using Register = float32x4_t;
  static constexpr bool has_own_loop = true;

  static Register pair(Register first, Register second) { return NeonVector::halves(first, second); }
  static Register narrow(Register first, Register second) { return vreinterpretq_f32_f16(vcvt_high_f16_f32(vcvt_f16_f32(first), second)); }

  template <int kRows, int kVectors, typename Columns, typename Ahead>
  static inline __attribute__((always_inline)) void add_products(Register (&sums)[kRows][kVectors], const float* a,
                                                                 std::int64_t row_stride, std::int64_t step_stride, Columns columns,
                                                                 std::int64_t steps, Ahead ahead) {
    for (std::int64_t begin = 0; begin < steps; begin += kHalfChain) {
      const std::int64_t end = begin + kHalfChain < steps ? begin + kHalfChain : steps;
      float16x8_t chains[kRows][kVectors] = {};
      for (std::int64_t step = begin; step < end; ++step, a += step_stride) {
        if (step % 2 == 0) ahead(step);
        float16x8_t right[kVectors];
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) right[i] = vreinterpretq_f16_f32(vld1q_f32(columns(step, i)));
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const float16x8_t left = vreinterpretq_f16_f32(vdupq_n_f32(a[row * row_stride]));
#pragma GCC unroll 16
          for (int i = 0; i < kVectors; ++i) chains[row][i] = vfmaq_f16(chains[row][i], left, right[i]);
        }
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; i += 2) {
          const float16x8_t both = vpaddq_f16(chains[row][i], chains[row][i + 1 < kVectors ? i + 1 : i]);
          sums[row][i] = vaddq_f32(sums[row][i], vcvt_f32_f16(vget_low_f16(both)));
          if (i + 1 < kVectors) sums[row][i + 1] = vaddq_f32(sums[row][i + 1], vcvt_high_f32_f16(both));
        }
      }
    }
  }
};

#endif

}  // namespace
}  // namespace handheld
