// Time per kernel on one thread, for real layers; each result is checked before it is timed.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "../testing.h"
#include "group_norm.h"
#include "oracle.h"

using namespace handheld;

int main() {
  struct Layer {
    const char* name;
    std::int64_t channels, positions;
  };
  constexpr std::int64_t kGroups = 32;
  const Layer layers[] = {{"U-Net 320 @ 64x64", 320, 64 * 64}, {"U-Net 1280 @ 16x16", 1280, 16 * 16},
                          {"decoder 512 @ 128x128", 512, 128 * 128}, {"decoder 128 @ 512x512", 128, 512 * 512}};
  for (const Layer& layer : layers) {
    const auto size = static_cast<std::size_t>(layer.channels * layer.positions);
    const std::vector<float> x = testing::normal(size, 0.5, 2, 1);
    const std::vector<float> scale = testing::normal(static_cast<std::size_t>(layer.channels), 1, 0.5, 2);
    const std::vector<float> bias = testing::normal(scale.size(), 0, 1, 3);
    std::vector<float> y(size);
    const bool stream = size >= (8u << 20);
    const GroupNorm task{x.data(), scale.data(), bias.data(), y.data(), layer.channels, layer.positions, kGroups, 1e-5f, true, stream};
    const std::vector<testing::Expected> expected = testing::expected_group(task, 5);
    for (const Isa isa : available_isas()) {
      const GroupNormKernel kernel = group_norm_kernel(isa);
      double best = INFINITY;
      for (int run = 0; run < 7; ++run) {
        const auto start = std::chrono::steady_clock::now();
        for (std::int64_t index = 0; index < kGroups; ++index) kernel(task, index);
        best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
        if (run > 0) continue;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          const double error = std::abs(y[5 * size / kGroups + i] - expected[i].y);
          HANDHELD_CHECK(error <= expected[i].allowed, "%s, %s", layer.name, name_of(isa));
        }
        if (testing::failures > 0) return testing::report();
      }
      std::printf("%-22s %-9s %8.3f ms %6.1f GB/s\n", layer.name, name_of(isa), best, static_cast<double>(8 * size) / best / 1e6);
    }
  }
  return 0;
}
