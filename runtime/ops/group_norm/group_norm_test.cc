// Every kernel that this machine runs, against the oracle in double.
#include "group_norm.h"

#include <cmath>
#include <limits>

#include "../testing.h"
#include "oracle.h"

using namespace handheld;
using handheld::testing::expected_group;
using handheld::testing::normal;

namespace {

double worst_of_all = 0;

struct Shape {
  std::int64_t batch, channels, positions, groups;
};

constexpr float kUntouched = 12345.0f;
constexpr std::size_t kMargin = 64;

// Runs every group, from and to addresses that are `misaligned` floats past an aligned one, and checks values and margins.
void check(Isa isa, const Shape& shape, double mean, double deviation, bool silu, bool stream, std::size_t misaligned,
           float epsilon = 1e-5f) {
  const std::size_t size = static_cast<std::size_t>(shape.batch * shape.channels * shape.positions);
  const auto seed = static_cast<std::uint32_t>(size * 2 + (silu ? 1 : 0));
  const std::vector<float> x = normal(size + misaligned, mean, deviation, seed);
  const std::vector<float> scale = normal(static_cast<std::size_t>(shape.channels), 1, 0.5, seed + 1);
  const std::vector<float> bias = normal(static_cast<std::size_t>(shape.channels), 0, 1, seed + 2);
  std::vector<float> y(size + misaligned + 2 * kMargin, kUntouched);
  float* const first = y.data() + kMargin + misaligned;
  const GroupNorm task{x.data() + misaligned, scale.data(), bias.data(), first, shape.channels, shape.positions, shape.groups, epsilon,
                       silu, stream};

  const GroupNormKernel kernel = group_norm_kernel(isa);
  for (std::int64_t index = 0; index < shape.batch * shape.groups; ++index) kernel(task, index);

  std::size_t at = 0;
  double worst = 0;
  for (std::int64_t index = 0; index < shape.batch * shape.groups; ++index) {
    for (const auto& [expected, allowed] : expected_group(task, index)) {
      const double error = std::abs(first[at] - expected);
      worst = std::fmax(worst, std::isnan(error) ? INFINITY : allowed > 0 ? error / allowed : error);
      ++at;
    }
  }
  if (worst > worst_of_all) worst_of_all = worst;
  HANDHELD_CHECK(worst <= 1, "%s, [%d, %d, %d] in %d groups, mean %g, silu %d, stream %d: %.2f times the allowed error", name_of(isa),
                 static_cast<int>(shape.batch), static_cast<int>(shape.channels), static_cast<int>(shape.positions),
                 static_cast<int>(shape.groups), mean, silu, stream, worst);
  for (std::size_t i = 0; i < kMargin; ++i) {
    HANDHELD_CHECK(y[i + misaligned] == kUntouched && first[size + i] == kUntouched, "%s wrote outside of its output", name_of(isa));
  }
}

void check_shapes(Isa isa) {
  const Shape shapes[] = {
      {1, 1, 1, 1},     {1, 4, 1, 4},      {2, 4, 1, 2},    {1, 6, 3, 2},     {2, 6, 5, 3},      {1, 10, 7, 5},    {3, 8, 15, 2},
      {1, 4, 16, 2},    {2, 4, 17, 2},     {1, 3, 31, 1},   {1, 3, 33, 3},    {1, 2, 63, 1},     {1, 2, 65, 2},    {1, 5, 127, 5},
      {1, 5, 129, 1},   {1, 1, 4095, 1},   {1, 1, 4096, 1}, {1, 1, 4097, 1},  {1, 3, 4099, 1},   {1, 2, 9001, 1},  {1, 960, 4, 32},
      {1, 320, 64, 32}, {2, 1280, 16, 32}, {1, 64, 256, 2}, {1, 10, 4096, 1}, {1, 4, 65536, 1},  // the last two: one group of real layers
  };
  for (const Shape& shape : shapes) {
    for (const bool silu : {false, true}) {
      for (const auto& [mean, deviation] : {std::pair{0.0, 1.0}, std::pair{1e4, 1.0}, std::pair{-300.0, 0.01}, std::pair{0.5, 1e-4}}) {
        check(isa, shape, mean, deviation, silu, /*stream=*/false, /*misaligned=*/0);
      }
      check(isa, shape, 0.5, 2, silu, /*stream=*/false, /*misaligned=*/3);
      check(isa, shape, 0.5, 2, silu, /*stream=*/true, /*misaligned=*/0);
      check(isa, shape, 0.5, 2, silu, /*stream=*/true, /*misaligned=*/1);
      check(isa, shape, 0, 1e15, silu, /*stream=*/false, /*misaligned=*/0);
    }
  }
}

// Channels whose scale is 0 give their bias: so SiLU itself is seen, over its whole range.
void check_silu(Isa isa) {
  std::vector<float> values;
  for (double v = -110; v < 110; v += 0.0078125 + 1e-5) values.push_back(static_cast<float>(v));
  for (int exponent = -149; exponent < 127; ++exponent) {
    values.push_back(std::ldexp(1.0f, exponent));
    values.push_back(-std::ldexp(1.0f, exponent));
  }
  const std::vector<float> zeros(values.size(), 0.0f), x = normal(values.size(), 0, 1, 7);
  std::vector<float> y(values.size());
  const GroupNorm task{x.data(), zeros.data(), values.data(), y.data(), static_cast<std::int64_t>(values.size()), 1, 1, 1e-5f, true, false};
  group_norm_kernel(isa)(task, 0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double v = values[i], expected = v / (1 + std::exp(-v));
    const double unit = std::abs(expected) / (1 << 23);
    HANDHELD_CHECK(std::abs(y[i] - expected) <= (v < -88.7 ? 2.6e-37 : 2.5 * unit + 1.5e-45), "%s: silu(%.9g) is %.9g, not %.9g",
                   name_of(isa), v,
                   static_cast<double>(y[i]), expected);
  }
}

// What is not finite stays so, and stays in its group; equal values give the bias.
void check_special_values(Isa isa) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float special : {infinity, -infinity, nan}) {
    std::vector<float> x = normal(2 * 40, 0, 1, 11), y(2 * 40);
    x[17] = special;
    const std::vector<float> scale = {1, 1}, bias = {0, 0};
    const GroupNorm task{x.data(), scale.data(), bias.data(), y.data(), 2, 40, 2, 1e-5f, true, false};
    for (std::int64_t index : {0, 1}) group_norm_kernel(isa)(task, index);
    for (int i = 0; i < 40; ++i) {
      HANDHELD_CHECK(std::isnan(y[static_cast<std::size_t>(i)]), "%s hid that an input was %g", name_of(isa), static_cast<double>(special));
      HANDHELD_CHECK(std::isfinite(y[static_cast<std::size_t>(40 + i)]), "%s spread %g to another group", name_of(isa),
                     static_cast<double>(special));
    }
  }
  const std::vector<float> equal(40, 1e6f + 0.0625f), scale = {2, 3}, bias = {0.25f, -4};
  std::vector<float> y(40);
  const GroupNorm task{equal.data(), scale.data(), bias.data(), y.data(), 2, 20, 1, 1e-5f, false, false};
  group_norm_kernel(isa)(task, 0);
  for (std::size_t i = 0; i < 40; ++i) {
    HANDHELD_CHECK(y[i] == bias[i / 20], "%s: equal values give %g, not the bias", name_of(isa), static_cast<double>(y[i]));
  }
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    worst_of_all = 0;
    check_shapes(isa);
    check_silu(isa);
    check_special_values(isa);
    std::printf("%s: at worst %.2f times the allowed error\n", name_of(isa), worst_of_all);
  }
  return handheld::testing::report();
}
