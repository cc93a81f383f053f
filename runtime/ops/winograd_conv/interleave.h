// Rows of pictures to and from lanes that are tiles: lane t of out[c] is from[t * n + c], for n = 2, 4, 6, and the way back.
#pragma once

#include "../vector.h"

namespace handheld {
namespace {

// Interleave<V> has, for two and three registers, `part`, which takes apart what lies in turns, and its inverse, `mix`.
template <typename V>
struct Interleave;

template <>
struct Interleave<PortableVector> {
  using Register = PortableVector::Register;
  template <int n>
  static void part(Register (&r)[n]) {
    constexpr int lanes = PortableVector::lanes;
    float all[n * lanes];
    for (int i = 0; i < n * lanes; ++i) all[i] = r[i / lanes].lane[i % lanes];
    for (int i = 0; i < n * lanes; ++i) r[i % n].lane[i / n] = all[i];
  }
  template <int n>
  static void mix(Register (&r)[n]) {
    constexpr int lanes = PortableVector::lanes;
    float all[n * lanes];
    for (int i = 0; i < n * lanes; ++i) all[i] = r[i % n].lane[i / n];
    for (int i = 0; i < n * lanes; ++i) r[i / lanes].lane[i % lanes] = all[i];
  }
};

#if defined(__AVX2__)

// Three registers of 2^n lanes in turns: 3 t + k runs through all places modulo the lanes, so that a value has one place in the three
// registers wherever it is, and blending is enough to collect what a permutation then puts in order.
template <int lanes>
struct Thirds {
  int order[3][lanes] = {};     // lane t of part k is at this place, modulo the lanes
  int inverse[3][lanes] = {};   // and this part is at that place
  unsigned blend[3][3] = {};    // [register][k]: the places of this register where part k is
  constexpr Thirds() {
    for (int k = 0; k < 3; ++k) {
      for (int t = 0; t < lanes; ++t) {
        const int place = 3 * t + k;
        order[k][t] = place % lanes;
        inverse[k][place % lanes] = t;
        blend[place / lanes][k] |= 1u << place % lanes;
      }
    }
  }
};

#endif

#if defined(__AVX512F__)

template <>
struct Interleave<Avx512Vector> {
  using Register = __m512;
  static constexpr Thirds<16> thirds{};

  static void part(Register (&r)[2]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 first = r[0];
    r[0] = _mm512_permutex2var_ps(first, even, r[1]);
    r[1] = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), r[1]);
  }
  static void mix(Register (&r)[2]) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512 first = r[0];
    r[0] = _mm512_permutex2var_ps(first, low, r[1]);
    r[1] = _mm512_permutex2var_ps(first, _mm512_add_epi32(low, _mm512_set1_epi32(8)), r[1]);
  }
  static void part(Register (&r)[3]) {
    const __m512 from[3] = {r[0], r[1], r[2]};
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      const __m512 two = _mm512_mask_blend_ps(static_cast<__mmask16>(thirds.blend[1][k]), from[0], from[1]);
      const __m512 all = _mm512_mask_blend_ps(static_cast<__mmask16>(thirds.blend[2][k]), two, from[2]);
      r[k] = _mm512_permutexvar_ps(_mm512_loadu_si512(thirds.order[k]), all);
    }
  }
  static void mix(Register (&r)[3]) {
    __m512 placed[3];
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) placed[k] = _mm512_permutexvar_ps(_mm512_loadu_si512(thirds.inverse[k]), r[k]);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const __m512 two = _mm512_mask_blend_ps(static_cast<__mmask16>(thirds.blend[i][1]), placed[0], placed[1]);
      r[i] = _mm512_mask_blend_ps(static_cast<__mmask16>(thirds.blend[i][2]), two, placed[2]);
    }
  }
};

#elif defined(__AVX2__)

template <>
struct Interleave<Avx2Vector> {
  using Register = __m256;
  static constexpr Thirds<8> thirds{};

  static void part(Register (&r)[2]) {
    const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(r[0], r[1], 0x88)), odd = _mm256_castps_pd(_mm256_shuffle_ps(r[0], r[1], 0xDD));
    r[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xD8));
    r[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xD8));
  }
  static void mix(Register (&r)[2]) {
    const __m256 low = _mm256_unpacklo_ps(r[0], r[1]), high = _mm256_unpackhi_ps(r[0], r[1]);
    r[0] = _mm256_permute2f128_ps(low, high, 0x20);
    r[1] = _mm256_permute2f128_ps(low, high, 0x31);
  }
  template <int k>
  static Register third(const Register (&from)[3]) {
    const __m256 all = _mm256_blend_ps(_mm256_blend_ps(from[0], from[1], thirds.blend[1][k]), from[2], thirds.blend[2][k]);
    return _mm256_permutevar8x32_ps(all, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(thirds.order[k])));
  }
  static void part(Register (&r)[3]) {
    const __m256 from[3] = {r[0], r[1], r[2]};
    r[0] = third<0>(from);
    r[1] = third<1>(from);
    r[2] = third<2>(from);
  }
  static void mix(Register (&r)[3]) {
    __m256 placed[3];
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      placed[k] = _mm256_permutevar8x32_ps(r[k], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(thirds.inverse[k])));
    }
    r[0] = _mm256_blend_ps(_mm256_blend_ps(placed[0], placed[1], thirds.blend[0][1]), placed[2], thirds.blend[0][2]);
    r[1] = _mm256_blend_ps(_mm256_blend_ps(placed[0], placed[1], thirds.blend[1][1]), placed[2], thirds.blend[1][2]);
    r[2] = _mm256_blend_ps(_mm256_blend_ps(placed[0], placed[1], thirds.blend[2][1]), placed[2], thirds.blend[2][2]);
  }
};

#elif defined(__ARM_NEON)

template <>
struct Interleave<NeonVector> {
  using Register = float32x4_t;
  static void part(Register (&r)[2]) {
    const float32x4_t first = r[0];
    r[0] = vuzp1q_f32(first, r[1]);
    r[1] = vuzp2q_f32(first, r[1]);
  }
  static void mix(Register (&r)[2]) {
    const float32x4_t first = r[0];
    r[0] = vzip1q_f32(first, r[1]);
    r[1] = vzip2q_f32(first, r[1]);
  }
  static void part(Register (&r)[3]) {
    float all[12];
    for (int i = 0; i < 3; ++i) vst1q_f32(all + 4 * i, r[i]);
    const float32x4x3_t parts = vld3q_f32(all);
    for (int i = 0; i < 3; ++i) r[i] = parts.val[i];
  }
  static void mix(Register (&r)[3]) {
    float all[12];
    vst3q_f32(all, float32x4x3_t{{r[0], r[1], r[2]}});
    for (int i = 0; i < 3; ++i) r[i] = vld1q_f32(all + 4 * i);
  }
};

#endif

// out[c], lane t = from[t * n + c]
template <typename V, int n>
inline void load_parted(const float* from, typename V::Register* out) {
  using Register = typename V::Register;
  constexpr int half = n / 2;
  Register even[half], odd[half];  // of n values, those at even and at odd places
#pragma GCC unroll 3
  for (int i = 0; i < half; ++i) {
    Register two[2] = {V::load(from + 2 * i * V::lanes), V::load(from + (2 * i + 1) * V::lanes)};
    Interleave<V>::part(two);
    even[i] = two[0];
    odd[i] = two[1];
  }
  if constexpr (half > 1) {
    Interleave<V>::part(even);
    Interleave<V>::part(odd);
  }
#pragma GCC unroll 3
  for (int i = 0; i < half; ++i) {
    out[2 * i] = even[i];
    out[2 * i + 1] = odd[i];
  }
}

// to[t * n + c] = lane t of in[c]
template <typename V, int n>
inline void store_mixed(float* to, const typename V::Register* in) {
  using Register = typename V::Register;
  constexpr int half = n / 2;
  Register even[half], odd[half];
#pragma GCC unroll 3
  for (int i = 0; i < half; ++i) {
    even[i] = in[2 * i];
    odd[i] = in[2 * i + 1];
  }
  if constexpr (half > 1) {
    Interleave<V>::mix(even);
    Interleave<V>::mix(odd);
  }
#pragma GCC unroll 3
  for (int i = 0; i < half; ++i) {
    Register two[2] = {even[i], odd[i]};
    Interleave<V>::mix(two);
    V::store(to + 2 * i * V::lanes, two[0]);
    V::store(to + (2 * i + 1) * V::lanes, two[1]);
  }
}

}  // namespace
}  // namespace handheld
