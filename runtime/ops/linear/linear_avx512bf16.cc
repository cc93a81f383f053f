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

}  // namespace

const LinearKernels linear_avx512bf16 = {linear<Floats<Avx512Vector>, 6, 4>, linear<Pairs, 6, 4>, round_rows, 4};

}  // namespace handheld
