// Products of bfloat16 numbers, for files that are compiled for machines which have them.
//
// Both structs have the same functions. Registers of bfloat16 numbers travel as registers of floats: `pair` and `narrow` round to the
// nearest bfloat16, ties to even, and make one register of two. `multiply_add(a, b, c)` adds both products of each pair to c; where one
// instruction is not all that there is to it (`has_own_loop`), `add_products` adds those of many steps to many sums.
#pragma once

#include "vector.h"

namespace handheld {
namespace {

#if defined(__AVX512BF16__)

struct Avx512Bfloats {
  using Vector = Avx512Vector;
  using Register = __m512;
  static constexpr bool has_own_loop = false;

  // Lane i holds first[i] and second[i].
  static Register pair(Register first, Register second) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                           18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, _mm512_castps_si512(narrow(first, second))));
  }
  // The lanes of first, then those of second.
  static Register narrow(Register first, Register second) { return reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(second, first)); }
  static Register multiply_add(Register a, Register b, Register c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

struct NeonBfloats {
  using Vector = NeonVector;
  using Register = float32x4_t;
  static constexpr bool has_own_loop = true;

  static Register pair(Register first, Register second) {
    const auto narrowed = [](Register v) { return vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(v)); };
    return vreinterpretq_f32_u16(vzip1q_u16(narrowed(first), narrowed(second)));
  }
  static Register narrow(Register first, Register second) {
    return vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), second));
  }
  static Register multiply_add(Register a, Register b, Register c) {
    return vbfdotq_f32(c, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
  }

  // sums[row][i] += for all steps, the pair at a[row * row_stride + step * step_stride] times the pairs at columns(step, i). One of the
  // strides is 1. Calls ahead(step) at every second step, for what is to be fetched.
  //
  // BFMMLA multiplies 2 rows of 4 factors with 2 columns of 4: twice the products of BFDOT, which takes what is left. So two steps are
  // taken at a time, and the sums of two rows turned to squares and back.
  template <int kRows, int kVectors, typename Columns, typename Ahead>
  static inline __attribute__((always_inline)) void add_products(Register (&sums)[kRows][kVectors], const float* a,
                                                                 std::int64_t row_stride, std::int64_t step_stride, Columns columns,
                                                                 std::int64_t steps, Ahead ahead) {
    constexpr int kTwos = kRows / 2;
    turn(sums);
    std::int64_t step = 0;
    for (; step + 2 <= steps; step += 2, a += 2 * step_stride) {
      ahead(step);
      bfloat16x8_t rows[kTwos > 0 ? kTwos : 1];
#pragma GCC unroll 8
      for (int two = 0; two < kTwos; ++two) rows[two] = two_rows(a + 2 * two * row_stride, row_stride, step_stride);
      const float* const last = a + (kRows - 1) * row_stride;
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        const Register first = vld1q_f32(columns(step, i)), second = vld1q_f32(columns(step + 1, i));
        const bfloat16x8_t low = vreinterpretq_bf16_f32(vzip1q_f32(first, second));
        const bfloat16x8_t high = vreinterpretq_bf16_f32(vzip2q_f32(first, second));
#pragma GCC unroll 8
        for (int two = 0; two < kTwos; ++two) {
          sums[2 * two][i] = vbfmmlaq_f32(sums[2 * two][i], rows[two], low);
          sums[2 * two + 1][i] = vbfmmlaq_f32(sums[2 * two + 1][i], rows[two], high);
        }
        if constexpr (kRows % 2 != 0) {
          sums[kRows - 1][i] = multiply_add(vdupq_n_f32(last[0]), first, sums[kRows - 1][i]);
          sums[kRows - 1][i] = multiply_add(vdupq_n_f32(last[step_stride]), second, sums[kRows - 1][i]);
        }
      }
    }
    turn(sums);
    if (step == steps) return;
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Register pairs = vdupq_n_f32(a[row * row_stride]);
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) sums[row][i] = multiply_add(pairs, vld1q_f32(columns(step, i)), sums[row][i]);
    }
  }

 private:
  // Two steps of two rows: 4 factors of the one, then 4 of the other.
  static bfloat16x8_t two_rows(const float* a, std::int64_t row_stride, std::int64_t step_stride) {
    if (step_stride == 1) return vreinterpretq_bf16_f32(vcombine_f32(vld1_f32(a), vld1_f32(a + row_stride)));
    const float32x2_t zero = vdup_n_f32(0.0f);  // zip1 takes the lower halves
    return vreinterpretq_bf16_f32(vzip1q_f32(vcombine_f32(vld1_f32(a), zero), vcombine_f32(vld1_f32(a + step_stride), zero)));
  }

  // Of every two rows: row 0 and row 1 of 4 columns <-> 2 x 2 of columns 0 and 1, and of 2 and 3. It is its own inverse.
  template <int kRows, int kVectors>
  static inline __attribute__((always_inline)) void turn(Register (&sums)[kRows][kVectors]) {
#pragma GCC unroll 8
    for (int row = 0; row + 1 < kRows; row += 2) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        const float64x2_t first = vreinterpretq_f64_f32(sums[row][i]), second = vreinterpretq_f64_f32(sums[row + 1][i]);
        sums[row][i] = vreinterpretq_f32_f64(vtrn1q_f64(first, second));
        sums[row + 1][i] = vreinterpretq_f32_f64(vtrn2q_f64(first, second));
      }
    }
  }
};

#endif

}  // namespace
}  // namespace handheld
