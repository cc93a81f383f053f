// Speed per kernel on one thread, for real layers; each result is checked before it is timed.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "../testing.h"
#include "linear.h"
#include "oracle.h"

using namespace handheld;

int main() {
  struct Layer {
    const char* name;
    std::int64_t rows, depth, columns;
    LinearForm form;
  };
  const Layer layers[] = {
      {"time embedding", 1, 1280, 1280, LinearForm::kPlain},       {"text ViT-L", 77, 768, 3072, LinearForm::kPlain},
      {"U-Net 320 @ 64x64", 4096, 320, 320, LinearForm::kAdd},     {"U-Net 320 @ 64x64", 4096, 320, 2560, LinearForm::kGeglu},
      {"U-Net 1280 @ 16x16", 256, 1280, 2560, LinearForm::kGeglu}, {"U-Net 1280 @ 16x16", 256, 5120, 1280, LinearForm::kAdd}};
  for (const Layer& layer : layers) {
    const auto size = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
    const std::vector<float> x = testing::normal(size(layer.rows, layer.depth), 0, 1, 1);
    const std::vector<float> bias = testing::normal(size(layer.columns, 1), 0, 1, 2);
    const std::vector<float> residual = testing::normal(size(layer.rows, layer.columns), 0, 1, 3);
    std::vector<float> w = testing::normal(size(layer.depth, layer.columns), 0, 0.05, 4), y(size(layer.rows, layer.columns));
    const std::int64_t out = layer.form == LinearForm::kGeglu ? layer.columns / 2 : layer.columns;
    for (const Operands operands : {Operands::kFloat32, Operands::kBfloat16, Operands::kFloat16}) {
      const testing::Packed packed = testing::pack(w, layer.depth, layer.columns, operands);
      for (const Isa isa : available_isas()) {
        const LinearKernel kernel = linear_kernels(isa).of(operands);
        Linear task{x.data(), nullptr, packed.data(), bias.data(), layer.form == LinearForm::kAdd ? residual.data() : nullptr, y.data(),
                    layer.rows, layer.depth, layer.columns, layer.form};
        std::vector<std::uint16_t> pairs(size(layer.rows, layer.depth + 1));
        const bool rounds = kernel.round != nullptr;
        if (rounds) task.rounded = pairs.data();
        double best = INFINITY;
        for (int run = 0; run < 5; ++run) {
          const auto start = std::chrono::steady_clock::now();
          if (rounds) kernel.round(x.data(), pairs.data(), layer.rows, layer.depth);
          for (std::int64_t row = 0; row < layer.rows; row += 240) {
            kernel.multiply(task, {row, std::min(row + 240, layer.rows), 0, out / kPanelColumns});
          }
          best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
          for (std::int64_t i = 0; run == 0 && i < layer.rows * out; i += layer.rows * out / 97 + 1) {
            const testing::Expected expected = testing::expected_linear(task, w, i / out, i % out, rounds ? operands : Operands::kFloat32);
            HANDHELD_CHECK(std::abs(y[static_cast<std::size_t>(i)] - expected.y) <= expected.allowed, "%s, %s", layer.name, name_of(isa));
          }
          if (testing::failures > 0) return testing::report();
        }
        const double operations = 2.0 * static_cast<double>(layer.rows * layer.depth * layer.columns);
        std::printf("%-18s %5d x %4d x %5d %-8s %-10s %9.3f ms %6.1f GFLOP/s\n", layer.name, static_cast<int>(layer.rows),
                    static_cast<int>(layer.depth), static_cast<int>(layer.columns), name_of(operands), name_of(isa), best * 1e3,
                    operations / best / 1e9);
      }
    }
  }
  return 0;
}
