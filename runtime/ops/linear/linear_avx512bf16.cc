#include "linear_vector.h"

namespace handheld {
namespace {

// Products of pairs of bfloat16 numbers, summed up as floats.
struct Pairs : Avx512Vector {
  using Vector = Avx512Vector;
  using Weight = std::uint16_t;
  using Activation = std::uint16_t;
  static constexpr int depth = 2, parts = 1;
  static Register weights(const std::uint16_t* panel, int) { return _mm512_loadu_ps(panel); }
  static Register activation(const std::uint16_t* x, int) {
    float pair;
    std::memcpy(&pair, x, sizeof(pair));
    return _mm512_set1_ps(pair);
  }
  static Register multiply_add(Register x, Register weights, Register sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(weights));
  }
};

// To the nearest bfloat16, ties to even; a row of odd depth ends with a zero.
void round_rows(const float* x, std::uint16_t* to, std::int64_t rows, std::int64_t depth) {
  const std::int64_t stride = depth + depth % 2;
  for (std::int64_t row = 0; row < rows; ++row, x += depth, to += stride) {
    std::int64_t k = 0;
    for (; k + 16 <= depth; k += 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k))));
    }
    if (k < stride) {
      const __m512 rest = Avx512Vector::load_part(x + k, static_cast<int>(depth - k), 0.0f);
      const __mmask16 some = Avx512Vector::first(static_cast<int>(stride - k));
      _mm256_mask_storeu_epi16(to + k, some, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
    }
  }
}

// Panels of pairs: the rows of a pair rounded, and their numbers side by side. The last row of an odd number is paired with zeros.
void pack_pairs(const float* x, std::int64_t stride, std::int64_t depth, std::int64_t columns, std::uint16_t* to) {
  const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
                                         1, 16, 0);
  const std::int64_t steps = (depth + 1) / 2;
  for (std::int64_t step = 0; step < steps; ++step, x += 2 * stride) {
    const bool both = 2 * step + 1 < depth;
    const std::int64_t ahead = 2 * step + 1 + kRowsAhead < depth ? kRowsAhead * stride : 0;
    for (std::int64_t column = 0; column < columns; column += kPanelColumns) {
      const float* const first = x + column;
      const float* const second = both ? first + stride : first;
      __builtin_prefetch(first + ahead);
      __builtin_prefetch(second + ahead);
      const __m512 upper = both ? load_some<Avx512Vector>(second, columns - column) : _mm512_setzero_ps();
      const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(upper, load_some<Avx512Vector>(first, columns - column)));
      _mm512_storeu_si512(to + (column / kPanelColumns * steps + step) * 2 * kPanelColumns, _mm512_permutexvar_epi16(turns, rounded));
    }
  }
}

}  // namespace

const LinearKernels linear_avx512bf16 = {linear<Floats<Avx512Vector>, 6, 4>, linear<Pairs, 6, 4>, round_rows, 4, pack<Avx512Vector>, pack_pairs};

}  // namespace handheld
