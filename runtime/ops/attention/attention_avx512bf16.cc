#include "attention_vector.h"

namespace handheld {
namespace {

// Products of pairs of bfloat16 numbers, summed up as floats; a register of pairs travels as one of floats.
struct Pairs {
  using Vector = Avx512Vector;
  using Register = __m512;
  static constexpr int depth = 2;

  // Both factors rounded to the nearest bfloat16, side by side.
  static Register join(const Register (&factors)[2]) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
                                           2, 17, 1, 16, 0);
    const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(factors[1], factors[0]));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, rounded));
  }
  static Register multiply_add(Register a, Register b, Register c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  // k [kKeyBlock][k_stride] and v [kKeyBlock / 2][v_stride], whole registers.
  static constexpr std::int64_t k_stride(std::int64_t dim) { return (dim + 31) / 32 * 16; }
  static constexpr std::int64_t v_stride(std::int64_t dim) { return (dim + 15) / 16 * 16; }
  static constexpr std::int64_t block_floats(std::int64_t dim) { return kKeyBlock * k_stride(dim) + kKeyBlock / 2 * v_stride(dim); }

  static Register load(const float* from, std::int64_t count) {
    if (count >= 16) return Vector::load(from);
    return count <= 0 ? Vector::broadcast(0.0f) : Vector::load_part(from, static_cast<int>(count), 0.0f);
  }

  static KeyBlock block(const Attention& task, const Head& head, std::int64_t key, std::int64_t keys, float* memory) {
    const KeyBlock block{memory, memory + kKeyBlock * k_stride(task.dim), k_stride(task.dim), v_stride(task.dim)};
    float* const v = memory + kKeyBlock * block.k_stride;
    for (std::int64_t i = 0; i < keys; ++i) {
      const float* const from = head.k + (key + i) * head.width;
      for (std::int64_t at = 0; at < task.dim; at += 32) {
        const __m512bh rounded = _mm512_cvtne2ps_pbh(load(from + at + 16, task.dim - at - 16), load(from + at, task.dim - at));
        _mm512_storeu_si512(memory + i * block.k_stride + at / 2, reinterpret_cast<__m512i>(rounded));
      }
    }
    for (std::int64_t i = 0; i < keys; i += 2) {
      const float* const from = head.v + (key + i) * head.width;
      for (std::int64_t at = 0; at < task.dim; at += 16) {
        const std::int64_t count = task.dim - at;
        Vector::store(v + i / 2 * block.v_stride + at, join({load(from + at, count), load(from + head.width + at, i + 1 < keys ? count : 0)}));
      }
    }
    return block;
  }
};

}  // namespace

// 8 x 3 registers of sums, 3 of queries or probabilities, one of a key's or a value's pair: 28 of 32
constinit const AttentionKernel flash_attention_avx512bf16 = flash_attention<Pairs, 8, 3>();

}  // namespace handheld
