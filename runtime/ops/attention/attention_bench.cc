// Time per kernel on as many threads as the argument says (1 without), for real layers; each result is checked before it is timed.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <thread>

#include "../testing.h"
#include "attention.h"
#include "oracle.h"

using namespace handheld;

namespace {

void run(const AttentionKernel& kernel, const Attention& task, int threads) {
  std::atomic<std::int64_t> next{0};
  const std::int64_t pieces = kernel.pieces(task);
  const auto work = [&] {
    std::vector<float> memory(static_cast<std::size_t>(kernel.scratch(task)) + 16);
    void* start = memory.data();
    std::size_t space = memory.size() * sizeof(float);
    float* const scratch = static_cast<float*>(std::align(64, space - 64, start, space));
    for (std::int64_t piece; (piece = next++) < pieces;) kernel.run(task, piece, scratch);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace

int main(int count, char** arguments) {
  struct Layer {
    const char* name;
    std::int64_t heads, queries, keys, dim;
  };
  const Layer layers[] = {{"SD1.x 64x64", 8, 4096, 4096, 40},       {"SD1.x 32x32", 8, 1024, 1024, 80}, {"SD1.x 16x16", 8, 256, 256, 160},
                          {"SD1.x 64x64 to text", 8, 4096, 77, 40}, {"SD1.x 8x8", 8, 64, 64, 160},      {"SDXL 32x32", 20, 1024, 1024, 64},
                          {"SDXL 32x32 to text", 20, 1024, 77, 64},   {"decoder 64x64", 1, 4096, 4096, 512}};
  const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
  for (const Layer& layer : layers) {
    const auto size = [&](std::int64_t tokens) { return static_cast<std::size_t>(layer.heads * tokens * layer.dim); };
    const std::vector<float> q = testing::normal(size(layer.queries), 0, 1, 1), k = testing::normal(size(layer.keys), 0, 1, 2);
    const std::vector<float> v = testing::normal(size(layer.keys), 0, 1, 3);
    std::vector<float> y(q.size());
    const Attention task{q.data(), k.data(), v.data(), nullptr, y.data(), 1, layer.heads, layer.queries, layer.keys, layer.dim,
                         1 / std::sqrt(static_cast<float>(layer.dim)), 0, 0, 0, 0};
    const auto expect = [&](Operands operands) {
      return testing::expected_query(testing::Rounded(task, operands).task, 0, 0, 5, operands);
    };
    for (const Isa isa : available_isas()) {
      struct Variant {
        const char* name;
        AttentionKernel kernel;
        Operands operands = Operands::kFloat32;
      };
      std::vector<Variant> variants = {{"flash", flash_attention_kernel(isa, Operands::kFloat32)},
                                       {"partial softmax", partial_softmax_attention_kernel(isa)}};
      if (isa == Isa::kAvx512Bf16 || isa == Isa::kNeonBf16) {
        variants.push_back({"flash, bfloat16", flash_attention_kernel(isa, Operands::kBfloat16), Operands::kBfloat16});
      }
      if (isa == Isa::kNeonFp16 || isa == Isa::kNeonBf16) {
        variants.push_back({"flash, float16", flash_attention_kernel(isa, Operands::kFloat16), Operands::kFloat16});
      }
      for (const auto& [name, kernel, operands] : variants) {
        const testing::Expected expected = expect(operands);
        double best = INFINITY, total = 0;
        for (int repeat = 0; repeat < 7 && total < 1500; ++repeat) {
          const auto start = std::chrono::steady_clock::now();
          run(kernel, task, threads);
          const double taken = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
          best = std::min(best, taken);
          total += taken;
          if (repeat > 0) continue;
          for (std::size_t i = 0; i < expected.y.size(); ++i) {
            const double error = std::abs(y[static_cast<std::size_t>(5 * layer.heads * layer.dim) + i] - expected.y[i]);
            HANDHELD_CHECK(error <= expected.allowed, "%s, %s, %s", layer.name, name, name_of(isa));
          }
          if (testing::failures > 0) return testing::report();
        }
        const double operations = 4.0 * static_cast<double>(layer.heads * layer.queries * layer.keys * layer.dim);
        std::printf("%-20s %-10s %-16s %9.3f ms %6.0f GFLOP/s\n", layer.name, name_of(isa), name, best, operations / best / 1e6);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}
