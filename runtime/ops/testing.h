// What the C++ tests share: checks that go on after a failure and are counted, seeded random numbers, and 16-bit numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "operands.h"

namespace handheld::testing {

inline int failures = 0;

#define HANDHELD_CHECK(condition, ...)                                \
  do {                                                                \
    if (!(condition)) {                                               \
      ++handheld::testing::failures;                                  \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                              \
      std::fputc('\n', stderr);                                       \
    }                                                                 \
  } while (false)

// The exit status of a test program.
inline int report() {
  if (failures > 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures > 0 ? 1 : 0;
}

inline std::vector<float> normal(std::size_t count, double mean, double deviation, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution(mean, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(distribution(generator));
  return values;
}

// To the nearest bfloat16, ties to even.
inline std::uint16_t bfloat16_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float float_of(std::uint16_t bfloat16) {
  const std::uint32_t bits = static_cast<std::uint32_t>(bfloat16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To the nearest float16, ties to even, and infinity from 65520 on; 11 bits, or a multiple of 2^-24.
inline float half_rounded(float value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int digits = std::max(std::ilogb(value), -14) - 10;  // the power of two of the last one
  const double result = std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(value), -digits)), digits);
  return std::abs(result) > 65504 ? static_cast<float>(std::copysign(INFINITY, result)) : static_cast<float>(result);
}

inline std::uint16_t half_of(float value) {
  const float rounded = half_rounded(value);
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  if (std::isnan(rounded)) return sign | 0x7e00;
  if (std::isinf(rounded)) return sign | 0x7c00;
  const int exponent = rounded == 0 ? -15 : std::max(std::ilogb(rounded), -15);
  if (exponent == -15) return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(std::abs(rounded), 24)));
  return static_cast<std::uint16_t>(sign | ((exponent + 15) << 10) | static_cast<int>(std::ldexp(std::abs(rounded), 10 - exponent) - 1024));
}

// A number as operands of that kind have it.
inline float rounded(float value, Operands operands) {
  return operands == Operands::kFloat32 ? value : operands == Operands::kBfloat16 ? float_of(bfloat16_of(value)) : half_rounded(value);
}

// Its bits, where they are 16.
inline std::uint16_t bits_of(float value, Operands operands) {
  return operands == Operands::kBfloat16 ? bfloat16_of(value) : half_of(value);
}

}  // namespace handheld::testing
