// Every kernel that this machine runs, against the oracle in double.
#include "linear.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../testing.h"
#include "oracle.h"

using namespace handheld;
using handheld::testing::Expected;
using handheld::testing::normal;

namespace {

constexpr float kUntouched = 12345.0f;
constexpr std::size_t kMargin = 64;
double worst_of_all = 0;

struct Shape {
  std::int64_t rows, depth, columns;
};

const char* name_of(LinearForm form) { return form == LinearForm::kPlain ? "plain" : form == LinearForm::kAdd ? "add" : "geglu"; }

// The activations as the kernel takes them, if it rounds them.
std::vector<std::uint16_t> rounded(const LinearKernel& kernel, const Linear& task, Operands operands) {
  if (kernel.round == nullptr) return {};
  const std::int64_t stride = task.depth + task.depth % 2;
  std::vector<std::uint16_t> result(static_cast<std::size_t>(task.rows * stride) + 1, 0xffff);
  kernel.round(task.x, result.data(), task.rows, task.depth);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    for (std::int64_t k = 0; k < stride; ++k) {
      const std::uint16_t expected = k < task.depth ? testing::bits_of(task.x[row * task.depth + k], operands) : 0;
      HANDHELD_CHECK(result[static_cast<std::size_t>(row * stride + k)] == expected, "rounded activation %d of row %d", static_cast<int>(k),
                     static_cast<int>(row));
    }
  }
  HANDHELD_CHECK(result.back() == 0xffff, "rounding wrote outside of its output");
  return result;
}

// Runs the layer in blocks of `rows` rows and `panels` panels, from and to addresses that are `misaligned` floats past an aligned one.
void check(Isa isa, const Shape& shape, LinearForm form, Operands operands, std::int64_t rows, std::int64_t panels, std::size_t misaligned,
           double scale = 1) {
  const LinearKernel kernel = linear_kernels(isa).of(operands);
  const auto [m, depth, columns] = shape;
  const std::int64_t out = form == LinearForm::kGeglu ? columns / 2 : columns;
  const auto seed = static_cast<std::uint32_t>(m * 131 + depth * 17 + columns);
  const auto size = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
  const std::vector<float> x = normal(size(m, depth) + misaligned, 0.1, scale, seed);
  const std::vector<float> bias = normal(size(columns, 1) + misaligned, 0, 1, seed + 1);
  const std::vector<float> residual = normal(size(m, columns) + misaligned, 0, scale, seed + 2);
  std::vector<float> w = normal(size(depth, columns), 0, 1 / std::sqrt(static_cast<double>(depth + 1)), seed + 3);
  const testing::Packed packed = testing::pack(w, depth, columns, operands);
  std::vector<float> y(size(m, out) + misaligned + 2 * kMargin, kUntouched);
  float* const first = y.data() + kMargin + misaligned;
  Linear task{x.data() + misaligned, nullptr, packed.data(), bias.data() + misaligned,
              form == LinearForm::kAdd ? residual.data() + misaligned : nullptr, first, m, depth, columns, form};
  const std::vector<std::uint16_t> pairs = rounded(kernel, task, operands);
  if (!pairs.empty()) task.rounded = pairs.data();

  const std::int64_t all_panels = (out + kPanelColumns - 1) / kPanelColumns;
  for (std::int64_t row = 0; row < m; row += rows) {
    for (std::int64_t panel = 0; panel < all_panels; panel += panels) {
      kernel.multiply(task, {row, std::min(row + rows, m), panel, std::min(panel + panels, all_panels)});
    }
  }
  double worst = 0;
  const std::int64_t every = std::max<std::int64_t>(1, m * out * depth / 4000000);  // of large layers only some values
  for (std::int64_t i = 0; i < m * out; i += every) {
    const Expected expected = testing::expected_linear(task, w, i / out, i % out, pairs.empty() ? Operands::kFloat32 : operands);
    const double error = std::abs(first[i] - expected.y) / expected.allowed;
    worst = std::fmax(worst, std::isnan(error) ? INFINITY : error);
  }
  worst_of_all = std::fmax(worst_of_all, worst);
  HANDHELD_CHECK(worst <= 1, "%s, %s, %s, [%d, %d] x [%d, %d], blocks of %d x %d: %.2f times the allowed error", handheld::name_of(isa),
                 name_of(form), handheld::name_of(operands), static_cast<int>(m), static_cast<int>(depth), static_cast<int>(depth),
                 static_cast<int>(columns), static_cast<int>(rows), static_cast<int>(panels), worst);
  for (std::size_t i = 0; i < kMargin; ++i) {
    HANDHELD_CHECK(y[i + misaligned] == kUntouched && first[size(m, out) + i] == kUntouched, "%s wrote outside of its output",
                   handheld::name_of(isa));
  }
}

void check_shapes(Isa isa, Operands operands) {
  const Shape shapes[] = {{1, 1, 1},   {1, 3, 5},    {2, 2, 16},   {3, 7, 17},   {5, 8, 31},   {6, 9, 33},    {7, 16, 48},  {11, 17, 64},
                          {12, 5, 65}, {13, 40, 80}, {1, 320, 96}, {4, 33, 130}, {77, 64, 96}, {19, 127, 32}, {6, 0, 20}};
  for (const Shape& shape : shapes) {
    for (const LinearForm form : {LinearForm::kPlain, LinearForm::kAdd}) {
      check(isa, shape, form, operands, 240, 16, 0);
      check(isa, shape, form, operands, 6, 1, 1);
    }
  }
  for (const Shape& shape : {Shape{1, 5, 32}, Shape{3, 17, 64}, Shape{8, 40, 96}, Shape{13, 31, 160}, Shape{7, 64, 320}}) {
    check(isa, shape, LinearForm::kGeglu, operands, 240, 16, 0);
    check(isa, shape, LinearForm::kGeglu, operands, 4, 1, 3);
    check(isa, shape, LinearForm::kGeglu, operands, 240, 16, 0, /*scale=*/1e3);
  }
  // a depth of more than one block, of even and of odd parts
  check(isa, {7, 2560, 80}, LinearForm::kAdd, operands, 240, 16, 0);
  check(isa, {2, 3075, 33}, LinearForm::kPlain, operands, 240, 16, 1);
  // real layers: the time embedding, a projection of the U-Net, one of the text encoder
  check(isa, {1, 1280, 320}, LinearForm::kPlain, operands, 240, 16, 0);
  check(isa, {256, 320, 320}, LinearForm::kAdd, operands, 240, 16, 0);
  check(isa, {77, 768, 96}, LinearForm::kPlain, operands, 240, 16, 0);
  check(isa, {33, 320, 1280}, LinearForm::kGeglu, operands, 240, 16, 0);
}

// W x + bias + residual of [channels, pixels] of a picture: `columns` pixels from `first` on are packed and multiplied, no others written.
void check_picture(Isa isa, const Shape& shape, bool adds, Operands operands, std::int64_t pixels, std::int64_t first) {
  const LinearKernels kernels = linear_kernels(isa);
  const auto [rows, depth, columns] = shape;
  const bool rounds = kernels.of(operands).round != nullptr;
  const LinearKernel& kernel = rounds ? kernels.of(operands) : kernels.float32;
  const auto seed = static_cast<std::uint32_t>(rows * 31 + depth * 7 + columns);
  const auto size = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
  std::vector<float> w = normal(size(rows, depth), 0, 1 / std::sqrt(static_cast<double>(depth)), seed);
  const std::vector<float> x = normal(size(depth, pixels), 0.1, 1, seed + 1), bias = normal(size(rows, 1), 0, 1, seed + 2);
  const std::vector<float> residual = normal(size(rows, pixels), 0, 1, seed + 3);
  std::vector<std::uint16_t> narrow(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) narrow[i] = testing::bits_of(w[i], operands), w[i] = testing::rounded(w[i], operands);
  const std::int64_t panels = (columns + kPanelColumns - 1) / kPanelColumns, steps = (depth + 1) / 2;
  std::vector<float> packed(size(panels * kPanelColumns, depth) + 1, kUntouched);
  std::vector<std::uint16_t> pairs(size(panels * kPanelColumns, 2 * steps) + 1, 0xffff);
  kernel.pack(x.data() + first, pixels, depth, columns, rounds ? static_cast<void*>(pairs.data()) : packed.data());
  HANDHELD_CHECK(packed.back() == kUntouched && pairs.back() == 0xffff, "%s packed outside of its output", handheld::name_of(isa));
  for (std::int64_t i = 0; i < panels * kPanelColumns * 2 * steps; ++i) {  // [panel][step][column][of the pair]
    const std::int64_t k = i / (2 * kPanelColumns) % steps * 2 + i % 2;
    const std::int64_t panel = i / (2 * kPanelColumns * steps), lane = i / 2 % kPanelColumns;
    if (k >= depth && !rounds) continue;
    const std::int64_t column = panel * kPanelColumns + lane;
    const float value = k < depth && column < columns ? x[static_cast<std::size_t>(k * pixels + first + column)] : 0.0f;
    const bool same = rounds ? pairs[static_cast<std::size_t>(i)] == testing::bits_of(value, operands)
                             : packed[static_cast<std::size_t>((panel * depth + k) * kPanelColumns + lane)] == value;
    HANDHELD_CHECK(same, "%s: row %d of column %d as packed", handheld::name_of(isa), static_cast<int>(k), static_cast<int>(column));
  }

  std::vector<float> y(size(rows, pixels), kUntouched);
  const void* const panels_of_x = rounds ? static_cast<const void*>(pairs.data()) : packed.data();
  Linear task{w.data(), narrow.data(), panels_of_x, bias.data(), adds ? residual.data() + first : nullptr, y.data() + first, rows, depth,
              columns, adds ? LinearForm::kAdd : LinearForm::kPlain};
  task.bias_of_rows = true;
  task.stride = pixels;
  kernel.multiply(task, {0, rows / 2, 0, panels});
  kernel.multiply(task, {rows / 2, rows, 0, panels});
  double worst = 0;
  for (std::int64_t i = 0; i < rows * pixels; ++i) {
    const std::int64_t row = i / pixels, pixel = i % pixels;
    const float got = y[static_cast<std::size_t>(i)];
    if (pixel < first || pixel >= first + columns) {
      HANDHELD_CHECK(got == kUntouched, "%s wrote pixel %d", handheld::name_of(isa), static_cast<int>(pixel));
      continue;
    }
    double expected = bias[static_cast<std::size_t>(row)], beside = std::abs(expected), products = 0, weights = 0;
    if (adds) expected += residual[static_cast<std::size_t>(i)], beside += std::abs(residual[static_cast<std::size_t>(i)]);
    for (std::int64_t k = 0; k < depth; ++k) {
      const double weight = w[static_cast<std::size_t>(row * depth + k)];
      const double product = weight * x[static_cast<std::size_t>(k * pixels + pixel)];
      expected += product;
      products += std::abs(product);
      weights += std::abs(weight);
    }
    const double allowed = static_cast<double>(depth + 4) * std::ldexp(beside + products, -24) +
                           testing::rounding(depth, products, weights, rounds ? operands : Operands::kFloat32);
    worst = std::fmax(worst, std::abs(got - expected) / allowed);
  }
  worst_of_all = std::fmax(worst_of_all, worst);
  HANDHELD_CHECK(worst <= 1, "%s, %s, %d channels of %d, %d pixels: %.2f times the allowed error", handheld::name_of(isa),
                 handheld::name_of(operands), static_cast<int>(rows), static_cast<int>(depth), static_cast<int>(columns), worst);
}

void check_pictures(Isa isa, Operands operands) {
  for (const bool adds : {false, true}) {
    check_picture(isa, {1, 2, 1}, adds, operands, 1, 0);
    check_picture(isa, {7, 6, 17}, adds, operands, 40, 5);
    check_picture(isa, {16, 32, 64}, adds, operands, 64, 0);
    check_picture(isa, {33, 50, 100}, adds, operands, 257, 130);
    check_picture(isa, {13, 2562, 70}, adds, operands, 75, 3);  // a depth of more than one block
    if (operands == Operands::kFloat32) check_picture(isa, {5, 7, 31}, adds, operands, 33, 1);
  }
  check_picture(isa, {128, 256, 192}, false, operands, 1024, 64);  // the decoder's last shortcut, some pixels of it
}

// What is not finite stays so, and stays in its row or column.
void check_special_values(Isa isa, Operands operands) {
  const LinearKernel kernel = linear_kernels(isa).of(operands);
  const std::int64_t m = 8, depth = 9, columns = 20;
  for (const float special : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x = normal(static_cast<std::size_t>(m * depth), 0, 1, 1), w(static_cast<std::size_t>(depth * columns), 0.5f);
    const std::vector<float> bias(columns, 0.25f);
    x[static_cast<std::size_t>(3 * depth + 4)] = special;
    const testing::Packed packed = testing::pack(w, depth, columns, operands);
    std::vector<float> y(static_cast<std::size_t>(m * columns));
    Linear task{x.data(), nullptr, packed.data(), bias.data(), nullptr, y.data(), m, depth, columns, LinearForm::kPlain};
    std::vector<std::uint16_t> pairs(static_cast<std::size_t>(m * (depth + 1)));
    if (kernel.round != nullptr) {
      kernel.round(x.data(), pairs.data(), m, depth);
      task.rounded = pairs.data();
    }
    kernel.multiply(task, {0, m, 0, 2});
    for (std::int64_t i = 0; i < m * columns; ++i) {
      HANDHELD_CHECK(std::isfinite(y[static_cast<std::size_t>(i)]) == (i / columns != 3), "%s: %g in row 3, and value %d is %g",
                     handheld::name_of(isa), static_cast<double>(special), static_cast<int>(i),
                     static_cast<double>(y[static_cast<std::size_t>(i)]));
    }
  }
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    worst_of_all = 0;
    for (const Operands operands : {Operands::kFloat32, Operands::kBfloat16, Operands::kFloat16}) {
      check_shapes(isa, operands);
      check_pictures(isa, operands);
      check_special_values(isa, operands);
    }
    std::printf("%s: at worst %.2f times the allowed error\n", handheld::name_of(isa), worst_of_all);
  }
  return handheld::testing::report();
}
