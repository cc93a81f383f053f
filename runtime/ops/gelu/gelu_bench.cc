// Time per kernel on one thread, for real layers; each result is checked before it is timed.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "../testing.h"
#include "gelu.h"
#include "oracle.h"

using namespace handheld;

int main() {
  struct Layer {
    const char* name;
    std::int64_t rows, channels;
  };
  const Layer layers[] = {
      {"U-Net 320 @ 64x64", 64 * 64, 1280}, {"U-Net 640 @ 32x32", 32 * 32, 2560}, {"U-Net 1280 @ 16x16", 16 * 16, 5120}};
  for (const Layer& layer : layers) {
    const auto size = static_cast<std::size_t>(layer.rows * layer.channels);
    const std::vector<float> x = testing::normal(2 * size, 0, 2, 1);
    std::vector<float> y(size);
    for (const Isa isa : available_isas()) {
      const GeluKernels kernels = gelu_kernels(isa);
      const auto time = [&](const char* function, double bytes, auto run, auto expected) {
        double best = INFINITY;
        for (int repeat = 0; repeat < 7; ++repeat) {
          const auto start = std::chrono::steady_clock::now();
          run();
          best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
          for (std::size_t i = 0; repeat == 0 && i < size; i += 97) {
            const testing::Expected right = expected(i);
            HANDHELD_CHECK(std::abs(y[i] - right.y) <= right.allowed, "%s, %s of %s", layer.name, function, name_of(isa));
          }
          if (testing::failures > 0) return;
        }
        std::printf("%-20s %-11s %-9s %8.3f ms %6.1f GB/s\n", layer.name, function, name_of(isa), best, bytes / best / 1e6);
      };
      const auto count = static_cast<std::int64_t>(size);
      const auto bytes = static_cast<double>(sizeof(float) * size);
      const auto all_rows = [&] {
        for (std::int64_t row = 0; row < layer.rows; ++row) {
          const float* value = x.data() + 2 * row * layer.channels;
          kernels.geglu(value, value + layer.channels, y.data() + row * layer.channels, layer.channels);
        }
      };
      time("geglu", 3 * bytes, all_rows, [&](std::size_t i) {
        const std::size_t channels = static_cast<std::size_t>(layer.channels), at = i / channels * 2 * channels + i % channels;
        return testing::expected_geglu(x[at], x[at + channels]);
      });
      time("gelu", 2 * bytes, [&] { kernels.gelu(x.data(), y.data(), count); },
           [&](std::size_t i) { return testing::expected_gelu(x[i]); });
      time("quick_gelu", 2 * bytes, [&] { kernels.quick_gelu(x.data(), y.data(), count); },
           [&](std::size_t i) { return testing::expected_quick_gelu(x[i]); });
      if (testing::failures > 0) return testing::report();
    }
  }
  return 0;
}
