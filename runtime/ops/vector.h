// Vectors of floats, one struct of the same shape per instruction set: kernels are templates over them.
//
// A file that includes this is compiled once per instruction set, with that set's flags. Everything is in an unnamed namespace, and
// kernels use no inline functions of the standard library, so that the linker can never pick a copy compiled for another machine.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace handheld {
namespace {

// What each struct has: `lanes`; loads and stores of all lanes, or of the first `count` (the others read as `fill`, and are not
// written); `load_first` and `load_second`, of as many pairs of bfloat16 numbers; `round_half`, to the nearest float16, ties to even;
// `halves(a, b)`, both so rounded and side by side in pairs of 16 bits, of which `first_half` and `second_half` make floats again;
// `stream`, a store past the caches to an address aligned to the vector; arithmetic; `multiply_add(a, b, c)`, a * b + c;
// `absolute`, the sign taken away, of what is not a number too;
// `clamp`, into [low, high], what is not a number to low; `round`, to the nearest integer; `scale(v, n)`, v * 2^n for integral n in
// [-252, 254], to infinity and to zero where that leaves the range, and not a number where v is none; `max(a, b)`, b where one is not a
// number; `transpose`, of the square of as many registers as there are lanes; `sum`, over the lanes, in double.

struct PortableVector {
  static constexpr int lanes = 8;  // a multiple of what compilers find without being told
  struct Register {
    float lane[lanes];
  };

  template <typename Function>
  static Register map(Function function) {
    Register result;
    for (int i = 0; i < lanes; ++i) result.lane[i] = function(i);
    return result;
  }

  static Register broadcast(float value) {
    return map([&](int) { return value; });
  }
  static Register load(const float* from) {
    return map([&](int i) { return from[i]; });
  }
  static Register load_part(const float* from, int count, float fill) {
    return map([&](int i) { return i < count ? from[i] : fill; });
  }
  static Register load_first(const std::uint16_t* pairs) {
    return map([&](int i) { return float_of(pairs[2 * i]); });
  }
  static Register load_second(const std::uint16_t* pairs) {
    return map([&](int i) { return float_of(pairs[2 * i + 1]); });
  }
  static Register halves(Register a, Register b) {
    return map([&](int i) { return float_at(half_of(a.lane[i]) | static_cast<std::uint32_t>(half_of(b.lane[i])) << 16); });
  }
  static Register first_half(Register pairs) {
    return map([&](int i) { return float_of_half(static_cast<std::uint16_t>(bits_of(pairs.lane[i]))); });
  }
  static Register second_half(Register pairs) {
    return map([&](int i) { return float_of_half(static_cast<std::uint16_t>(bits_of(pairs.lane[i]) >> 16)); });
  }
  static Register round_half(Register v) {
    return map([&](int i) { return float_of_half(half_of(v.lane[i])); });
  }
  static void store(float* to, Register v) {
    for (int i = 0; i < lanes; ++i) to[i] = v.lane[i];
  }
  static void store_part(float* to, Register v, int count) {
    for (int i = 0; i < count; ++i) to[i] = v.lane[i];
  }
  static void stream(float* to, Register v) { store(to, v); }
  static void finish_streaming() {}

  static Register add(Register a, Register b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Register subtract(Register a, Register b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Register multiply(Register a, Register b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Register divide(Register a, Register b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static Register multiply_add(Register a, Register b, Register c) {
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Register absolute(Register v) {
    return map([&](int i) { return __builtin_fabsf(v.lane[i]); });
  }
  static Register max(Register a, Register b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Register clamp(Register v, float low, float high) {
    return map([&](int i) { return !(v.lane[i] > low) ? low : v.lane[i] > high ? high : v.lane[i]; });
  }
  static Register round(Register v) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: has no digits left after the point
    return map([&](int i) { return (v.lane[i] + kShift) - kShift; });
  }
  static Register scale(Register v, Register n) {
    return map([&](int i) {
      // twice half of the exponent: 2^n itself is not always a normal number
      const std::int32_t whole = n.lane[i] == n.lane[i] ? static_cast<std::int32_t>(n.lane[i]) : 0, half = whole / 2;
      return v.lane[i] * power_of_two(half) * power_of_two(whole - half);
    });
  }
  static void transpose(Register (&rows)[lanes]) {
    for (int i = 0; i < lanes; ++i) {
      for (int j = 0; j < i; ++j) {
        const float other = rows[i].lane[j];
        rows[i].lane[j] = rows[j].lane[i];
        rows[j].lane[i] = other;
      }
    }
  }
  static double sum(Register v) {
    double total = 0;
    for (int i = 0; i < lanes; ++i) total += v.lane[i];
    return total;
  }

 private:
  static std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
  }
  static float float_at(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static float float_of(std::uint16_t bfloat16) { return float_at(static_cast<std::uint32_t>(bfloat16) << 16); }
  static float power_of_two(std::int32_t n) { return float_at(static_cast<std::uint32_t>(n + 127) << 23); }

  // float16: 5 bits of exponent, biased by 15 where a float's is by 127, and 10 of fraction
  static std::uint16_t half_of(float value) {
    const std::uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);  // not a number
    if (size >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and more are infinity
    if (size < 0x38800000) {  // a multiple of 2^-24: adding 2^23 of them leaves no digits after the point
      return static_cast<std::uint16_t>(sign | (bits_of(float_at(size) * 16777216.0f + 8388608.0f) & 0xffff));
    }
    return static_cast<std::uint16_t>(sign | (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
  }
  static float float_of_half(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16, size = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    if (size >= 0x7c00u << 13) return float_at(sign | size | 0x7f800000);
    return float_at(sign | bits_of(float_at(size) * power_of_two(112)));
  }
};

#if defined(__AVX512F__)

struct Avx512Vector {
  static constexpr int lanes = 16;
  using Register = __m512;

  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }

  static Register broadcast(float value) { return _mm512_set1_ps(value); }
  static Register load(const float* from) { return _mm512_loadu_ps(from); }
  static Register load_part(const float* from, int count, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(count), from);
  }
  static Register load_first(const std::uint16_t* pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16)); }
  static Register load_second(const std::uint16_t* pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), _mm512_set1_epi32(-65536)));
  }
  static Register halves(Register a, Register b) {
    const __m512i first = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    const __m512i second = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
    return _mm512_castsi512_ps(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
  static Register first_half(Register pairs) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castps_si512(pairs))); }
  static Register second_half(Register pairs) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(pairs), 16)));
  }
  static Register round_half(Register v) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  static void store(float* to, Register v) { _mm512_storeu_ps(to, v); }
  static void store_part(float* to, Register v, int count) { _mm512_mask_storeu_ps(to, first(count), v); }
  static void stream(float* to, Register v) { _mm512_stream_ps(to, v); }
  static void finish_streaming() { _mm_sfence(); }

  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register subtract(Register a, Register b) { return _mm512_sub_ps(a, b); }
  static Register multiply(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register divide(Register a, Register b) { return _mm512_div_ps(a, b); }
  static Register multiply_add(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register absolute(Register v) { return _mm512_abs_ps(v); }
  static Register max(Register a, Register b) { return _mm512_max_ps(a, b); }
  // max returns its second operand where one is not a number
  static Register clamp(Register v, float low, float high) {
    return _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(low)), _mm512_set1_ps(high));
  }
  static Register round(Register v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Register scale(Register v, Register n) { return _mm512_scalef_ps(v, n); }
  static void transpose(Register (&rows)[lanes]) {
    Register pairs[lanes], fours[lanes];
    for (int i = 0; i < lanes; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // fours[i + j]: column j of the four columns in each quarter, of rows i to i + 3
    for (int i = 0; i < lanes; i += 4) {
      fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      const Register low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88), high = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
      const Register low2 = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
      const Register high2 = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
      rows[j] = _mm512_shuffle_f32x4(low, low2, 0x88);
      rows[4 + j] = _mm512_shuffle_f32x4(high, high2, 0x88);
      rows[8 + j] = _mm512_shuffle_f32x4(low, low2, 0xdd);
      rows[12 + j] = _mm512_shuffle_f32x4(high, high2, 0xdd);
    }
  }
  static double sum(Register v) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  }
};

#elif defined(__AVX2__)

struct Avx2Vector {
  static constexpr int lanes = 8;
  using Register = __m256;

  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static Register broadcast(float value) { return _mm256_set1_ps(value); }
  static Register load(const float* from) { return _mm256_loadu_ps(from); }
  static Register load_part(const float* from, int count, float fill) {
    const __m256i mask = first(count);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(from, mask), _mm256_castsi256_ps(mask));
  }
  static Register load_first(const std::uint16_t* pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(pairs), 16)); }
  static Register load_second(const std::uint16_t* pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(load_pairs(pairs), _mm256_set1_epi32(-65536)));
  }
  static Register halves(Register a, Register b) {
    const __m256i first = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    const __m256i second = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
    return _mm256_castsi256_ps(_mm256_or_si256(first, _mm256_slli_epi32(second, 16)));
  }
  static Register first_half(Register pairs) {
    return widen_lower(_mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32(0xffff)));
  }
  static Register second_half(Register pairs) { return widen_lower(_mm256_srli_epi32(_mm256_castps_si256(pairs), 16)); }
  static Register round_half(Register v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  static void store(float* to, Register v) { _mm256_storeu_ps(to, v); }
  static void store_part(float* to, Register v, int count) { _mm256_maskstore_ps(to, first(count), v); }
  static void stream(float* to, Register v) { _mm256_stream_ps(to, v); }
  static void finish_streaming() { _mm_sfence(); }

  static Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register subtract(Register a, Register b) { return _mm256_sub_ps(a, b); }
  static Register multiply(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register divide(Register a, Register b) { return _mm256_div_ps(a, b); }
  static Register multiply_add(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  static Register absolute(Register v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  static Register max(Register a, Register b) { return _mm256_max_ps(a, b); }
  // max returns its second operand where one is not a number
  static Register clamp(Register v, float low, float high) {
    return _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(low)), _mm256_set1_ps(high));
  }
  static Register round(Register v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Register scale(Register v, Register n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(v, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
  }
  static void transpose(Register (&rows)[lanes]) {
    Register pairs[lanes], fours[lanes];
    for (int i = 0; i < lanes; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // fours[i + j]: column j of the four columns in each half, of rows i to i + 3
    for (int i = 0; i < lanes; i += 4) {
      fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      rows[j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x20);
      rows[4 + j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x31);
    }
  }
  static double sum(Register v) {
    const __m256d pairs = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(pairs), _mm256_extractf128_pd(pairs, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }

 private:
  // float16 numbers, each in the lower half of 32 bits
  static Register widen_lower(__m256i v) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  static __m256i load_pairs(const std::uint16_t* pairs) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)); }
  static __m256 power_of_two(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
};

#elif defined(__ARM_NEON)

struct NeonVector {
  static constexpr int lanes = 4;
  using Register = float32x4_t;

  static Register broadcast(float value) { return vdupq_n_f32(value); }
  static Register load(const float* from) { return vld1q_f32(from); }
  static Register load_part(const float* from, int count, float fill) {
    float lane[lanes] = {fill, fill, fill, fill};
    std::memcpy(lane, from, static_cast<std::size_t>(count) * sizeof(float));
    return vld1q_f32(lane);
  }
  static Register load_first(const std::uint16_t* pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(load_pairs(pairs), 16)); }
  static Register load_second(const std::uint16_t* pairs) {
    return vreinterpretq_f32_u32(vandq_u32(load_pairs(pairs), vdupq_n_u32(0xffff0000u)));
  }
  static Register halves(Register a, Register b) {
    const uint32x4_t first = vmovl_u16(vreinterpret_u16_f16(vcvt_f16_f32(a)));
    const uint32x4_t second = vshll_n_u16(vreinterpret_u16_f16(vcvt_f16_f32(b)), 16);
    return vreinterpretq_f32_u32(vorrq_u32(first, second));
  }
  static Register first_half(Register pairs) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_f32(pairs)))); }
  static Register second_half(Register pairs) { return vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(vreinterpretq_u32_f32(pairs), 16))); }
  static Register round_half(Register v) { return vcvt_f32_f16(vcvt_f16_f32(v)); }
  static void store(float* to, Register v) { vst1q_f32(to, v); }
  static void store_part(float* to, Register v, int count) {
    float lane[lanes];
    vst1q_f32(lane, v);
    std::memcpy(to, lane, static_cast<std::size_t>(count) * sizeof(float));
  }
  static void stream(float* to, Register v) { vst1q_f32(to, v); }  // there is no intrinsic for a store past the caches
  static void finish_streaming() {}

  static Register add(Register a, Register b) { return vaddq_f32(a, b); }
  static Register subtract(Register a, Register b) { return vsubq_f32(a, b); }
  static Register multiply(Register a, Register b) { return vmulq_f32(a, b); }
  static Register divide(Register a, Register b) { return vdivq_f32(a, b); }
  static Register multiply_add(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
  static Register absolute(Register v) { return vabsq_f32(v); }
  static Register max(Register a, Register b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Register clamp(Register v, float low, float high) { return vminnmq_f32(vmaxnmq_f32(v, vdupq_n_f32(low)), vdupq_n_f32(high)); }
  static Register round(Register v) { return vrndnq_f32(v); }
  static Register scale(Register v, Register n) {
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    return vmulq_f32(vmulq_f32(v, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
  }
  static void transpose(Register (&rows)[lanes]) {
    const float32x4x2_t first = vtrnq_f32(rows[0], rows[1]), second = vtrnq_f32(rows[2], rows[3]);
    rows[0] = vcombine_f32(vget_low_f32(first.val[0]), vget_low_f32(second.val[0]));
    rows[1] = vcombine_f32(vget_low_f32(first.val[1]), vget_low_f32(second.val[1]));
    rows[2] = vcombine_f32(vget_high_f32(first.val[0]), vget_high_f32(second.val[0]));
    rows[3] = vcombine_f32(vget_high_f32(first.val[1]), vget_high_f32(second.val[1]));
  }
  static double sum(Register v) { return vaddvq_f64(vaddq_f64(vcvt_f64_f32(vget_low_f32(v)), vcvt_high_f64_f32(v))); }

 private:
  static uint32x4_t load_pairs(const std::uint16_t* pairs) { return vreinterpretq_u32_u16(vld1q_u16(pairs)); }
  static float32x4_t power_of_two(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
};

#endif

}  // namespace
}  // namespace handheld
