#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<Avx512Vector> {
  static constexpr int rows = 8, vectors = 3;
};

// Products of pairs of bfloat16 numbers, summed up as floats; a register of pairs travels as one of floats.
struct PairProducts {
  using Vector = Avx512Vector;
  using Register = __m512;
  static constexpr int channels = 2;

  static Register multiply_add(Register u, Register v, Register sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(u), reinterpret_cast<__m512bh>(v));
  }

  // Both channels rounded to the nearest bfloat16, side by side.
  static Register pair(Register first, Register second) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
                                           2, 17, 1, 16, 0);
    const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, rounded));
  }
};

}  // namespace

const WinogradKernel winograd_conv_avx512bf16 = kernel_of<PairProducts>();

}  // namespace handheld
