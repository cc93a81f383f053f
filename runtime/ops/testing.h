// What the C++ tests share: checks that go on after a failure and are counted, and seeded random numbers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

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

}  // namespace handheld::testing
