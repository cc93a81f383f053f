// Every kernel that this machine runs, against a direct convolution in double.
#include "winograd_conv.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "../testing.h"
#include "oracle.h"

using namespace handheld;
using handheld::testing::normal;

namespace {

double worst_of_all = 0;

struct Shape {
  std::int64_t batch, channels_in, channels_out, height, width;
};

struct Variant {
  int tile;
  Operands operands;
  bool bias, residual, silu;
  int threads;
  double mean, deviation;  // of the input
};

constexpr Operands kAll[] = {Operands::kFloat32, Operands::kBfloat16, Operands::kFloat16};
constexpr float kUntouched = 12345.0f;
constexpr std::size_t kMargin = 64;

void in_turn(std::int64_t count, const std::function<void(std::int64_t)>& task) {
  for (std::int64_t index = count - 1; index >= 0; --index) task(index);  // any order will do
}

Parallel by_threads(int threads) {
  return [threads](std::int64_t count, const std::function<void(std::int64_t)>& task) {
    std::vector<std::thread> all;
    for (int thread = 0; thread < threads; ++thread) {
      all.emplace_back([&, thread] {
        for (std::int64_t index = thread; index < count; index += threads) task(index);
      });
    }
    for (std::thread& each : all) each.join();
  };
}

// Memory of kernels as they get it: aligned, and full of what is not a number.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : floats_(bytes / sizeof(float) + kMargin, std::nanf("")) {}
  void* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(floats_.data());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }

 private:
  std::vector<float> floats_;
};

// The mean square of the pixels that reach the tile of an output.
double energy(const WinogradConv& task, std::int64_t image, std::int64_t row, std::int64_t column) {
  const std::int64_t top = row / task.tile * task.tile - 1, left = column / task.tile * task.tile - 1;
  double sum = 0;
  for (std::int64_t c = 0; c < task.channels_in; ++c) {
    const float* x = task.x + (image * task.channels_in + c) * task.height * task.width;
    for (std::int64_t i = std::max<std::int64_t>(top, 0); i < std::min(top + task.tile + 2, task.height); ++i) {
      for (std::int64_t j = std::max<std::int64_t>(left, 0); j < std::min(left + task.tile + 2, task.width); ++j) {
        sum += static_cast<double>(x[i * task.width + j]) * static_cast<double>(x[i * task.width + j]);
      }
    }
  }
  return sum / static_cast<double>(task.channels_in);
}

// Error that is allowed, over the size of y without structure. Products are rounded once each; sums of n floats have about n / 6 roundings
// of the size of the result (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019), in chains of 320; a dozen
// more are the transforms'. bfloat16: both factors of a product are rounded to 8 bits. float16: to 11 bits, and so are sums of up to 16
// products, whose squares are 8.5 times a product's on average, and those of two of them. 6 deviations for tens of thousands of values.
double allowed_of(const WinogradConv& task) {
  const double unit = 1.0 / (1 << 24), depth = static_cast<double>(task.channels_in);
  const double roundings = 12 + std::fmin(depth, 320) / 6 + depth / 320;
  const double of_operands = task.operands == Operands::kBfloat16  ? std::sqrt(2.0 / 3) / 256
                             : task.operands == Operands::kFloat16 ? std::sqrt((2 + 8.5 + 1) / 3) / 2048
                                                                   : 0;
  const double rounding = unit * std::sqrt(roundings) + of_operands;
  return 6 * testing::Matrices(task.tile).amplification() * rounding;
}

void check(Isa isa, const Shape& shape, const Variant& variant, std::int64_t every = 1) {
  const auto count = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
  const std::size_t positions = count(shape.height, shape.width), in = count(shape.batch * shape.channels_in, shape.height * shape.width);
  const std::size_t out = count(shape.batch, shape.channels_out) * positions;
  const auto seed = static_cast<std::uint32_t>(in * 3 + out);
  const std::vector<float> x = normal(in, variant.mean, variant.deviation, seed);
  const std::vector<float> g = normal(count(shape.channels_out, shape.channels_in) * 9, 0, 1, seed + 1);
  const std::vector<float> bias = normal(count(shape.channels_out, 1), 0, 1, seed + 2);
  const std::vector<float> residual = normal(variant.residual ? out : 0, 0, 1, seed + 3);
  std::vector<float> y(out + 2 * kMargin, kUntouched);
  float* const first = y.data() + kMargin;
  const testing::Packed packed = testing::pack(g, shape.channels_out, shape.channels_in, variant.tile, variant.operands);
  const WinogradConv task{x.data(), packed.data(), variant.operands, variant.bias ? bias.data() : nullptr,
                          variant.residual ? residual.data() : nullptr, first, shape.batch, shape.channels_in, shape.channels_out,
                          shape.height, shape.width, variant.tile, variant.silu};

  Scratch scratch(winograd_conv_scratch(task, isa, variant.threads));
  winograd_conv(task, isa, variant.threads, scratch.data(), variant.threads > 1 ? by_threads(variant.threads) : Parallel(in_turn));

  const double allowed = allowed_of(task);
  double worst = 0;
  for (std::size_t at = 0; at < out; at += static_cast<std::size_t>(every)) {
    const auto place = static_cast<std::int64_t>(at), column = place % shape.width, row = place / shape.width % shape.height;
    const std::int64_t plane = place / shape.width / shape.height, o = plane % shape.channels_out, image = plane / shape.channels_out;
    double weights = 0;
    for (std::int64_t i = 0; i < shape.channels_in * 9; ++i) {
      weights += std::pow(static_cast<double>(g[static_cast<std::size_t>(o * shape.channels_in * 9 + i)]), 2);
    }
    const double alpha = variant.tile + 2, expected = testing::expected_at(task, g, image, o, row, column);
    const double size = std::sqrt(weights * energy(task, image, row, column)) / std::fmin(alpha, 3);
    const double error = std::abs(first[at] - expected) / (1.1 * allowed * size + 1e-6 * (std::abs(expected) + 1));
    worst = std::fmax(worst, std::isnan(error) ? INFINITY : error);
  }
  worst_of_all = std::fmax(worst_of_all, worst);
  HANDHELD_CHECK(worst <= 1,
                 "%s, F(%d), %s, [%d, %d -> %d, %d, %d], bias %d, residual %d, silu %d, %d threads, mean %g: %.2f times the allowed error",
                 name_of(isa), variant.tile, name_of(variant.operands), static_cast<int>(shape.batch), static_cast<int>(shape.channels_in),
                 static_cast<int>(shape.channels_out), static_cast<int>(shape.height), static_cast<int>(shape.width), variant.bias,
                 variant.residual, variant.silu, variant.threads, variant.mean, worst);
  for (std::size_t i = 0; i < kMargin; ++i) {
    HANDHELD_CHECK(y[i] == kUntouched && first[out + i] == kUntouched, "%s wrote outside of its output", name_of(isa));
  }
}

void check_shapes(Isa isa) {
  const Shape shapes[] = {{1, 1, 1, 1, 1},  {1, 1, 1, 2, 3},  {2, 3, 4, 5, 7},   {1, 4, 3, 1, 40},
                          {1, 2, 9, 33, 1}, {3, 5, 8, 6, 6},  {1, 9, 12, 16, 8}, {2, 7, 17, 13, 11},
                          {1, 16, 24, 8, 8}, {2, 8, 8, 24, 24}, {1, 3, 5, 19, 97}, {1, 64, 56, 12, 12}};
  for (const Shape& shape : shapes) {
    for (const int tile : {2, 4, 6}) {
      for (const Operands operands : kAll) {
        check(isa, shape, {tile, operands, false, false, false, 1, 0, 1});
        check(isa, shape, {tile, operands, true, true, true, 3, 0, 1});
      }
    }
  }
  for (const int tile : {2, 4, 6}) {
    check(isa, {1, 6, 10, 21, 30}, {tile, Operands::kFloat32, true, false, true, 1, 0, 1});
    check(isa, {1, 6, 10, 21, 30}, {tile, Operands::kBfloat16, false, true, false, 2, 0, 1});
    check(isa, {1, 6, 10, 21, 30}, {tile, Operands::kFloat32, true, false, false, 1, 1e4, 1});    // a large mean
    check(isa, {1, 6, 10, 21, 30}, {tile, Operands::kFloat32, true, false, false, 1, 0, 1e-30});  // and what is nearly nothing
    check(isa, {1, 700, 9, 9, 9}, {tile, Operands::kFloat32, true, false, false, 1, 0, 1}, 7);    // sums of sums
    check(isa, {1, 701, 9, 9, 9}, {tile, Operands::kBfloat16, true, false, false, 1, 0, 1}, 7);
    check(isa, {1, 351, 9, 9, 9}, {tile, Operands::kFloat16, true, false, false, 1, 0, 1}, 7);
    check(isa, {1, 2, 9, 260, 250}, {tile, Operands::kFloat32, true, false, false, 2, 0, 1}, 31);  // blocks enough for each thread
    check(isa, {1, 3, 9, 260, 250}, {tile, Operands::kBfloat16, true, false, false, 2, 0, 1}, 31);
    check(isa, {1, 2, 72, 256, 256}, {tile, Operands::kFloat32, true, false, false, 2, 0, 1}, 997);  // written past the caches
  }
}

// Some values of layers as deep and as wide as real ones; they have fewer output channels, for the sake of the emulated machines.
void check_layers(Isa isa) {
  if (isa == Isa::kPortable) return;  // slow, and there is nothing of its own in large shapes
  check(isa, {2, 320, 72, 64, 64}, {4, Operands::kFloat32, true, true, false, 2, 0, 1}, 19991);
  check(isa, {2, 640, 64, 16, 16}, {2, Operands::kBfloat16, true, false, true, 2, 0, 1}, 997);
  check(isa, {1, 128, 24, 128, 128}, {6, Operands::kFloat32, true, false, false, 2, 0, 1}, 9973);
}

// What is not a number stays one, and stays in the tiles that it reaches.
void check_special_values(Isa isa) {
  for (const int tile : {2, 4, 6}) {
    for (const Operands operands : kAll) {
      std::vector<float> x = normal(2 * 24 * 24, 0, 1, 5), y(3 * 24 * 24);
      x[24 * 24 + 3 * 24 + 20] = std::nanf("");
      const std::vector<float> g = normal(2 * 3 * 9, 0, 1, 6);
      const testing::Packed packed = testing::pack(g, 3, 2, tile, operands);
      const WinogradConv task{x.data(), packed.data(), operands, nullptr, nullptr, y.data(), 1, 2, 3, 24, 24, tile, false};
      Scratch scratch(winograd_conv_scratch(task, isa, 1));
      winograd_conv(task, isa, 1, scratch.data(), in_turn);
      for (std::int64_t i = 0; i < 3 * 24 * 24; ++i) {
        const std::int64_t row = i / 24 % 24, column = i % 24;
        const bool wrong = std::abs(row - 3) <= 1 && std::abs(column - 20) <= 1;
        const bool near = std::abs(row - 3) <= tile + 1 && std::abs(column - 20) <= tile + 1;
        const float value = y[static_cast<std::size_t>(i)];
        HANDHELD_CHECK(wrong ? std::isnan(value) : near || !std::isnan(value), "%s, F(%d): what is not a number at row %d, column %d",
                       name_of(isa), tile,
                       static_cast<int>(row), static_cast<int>(column));
      }
    }
  }
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    worst_of_all = 0;
    check_shapes(isa);
    check_layers(isa);
    check_special_values(isa);
    std::printf("%s: at worst %.2f times the allowed error\n", name_of(isa), worst_of_all);
  }
  return handheld::testing::report();
}
