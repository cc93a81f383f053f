// Every kernel that this machine runs, against the oracle in double.
#include "attention.h"

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "../testing.h"
#include "oracle.h"

using namespace handheld;
using handheld::testing::expected_query;
using handheld::testing::normal;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kUntouched = 12345.0f;
constexpr std::size_t kMargin = 64;

struct Variant {
  std::string name;
  AttentionKernel kernel;
  Operands operands = Operands::kFloat32;
  bool emulated = false;
};

double worst_of_all = 0;

struct Shape {
  std::int64_t batch, heads, queries, keys, dim;
};

// Inputs of a task, from addresses that are `misaligned` floats past an aligned one.
struct Inputs {
  Inputs(const Shape& shape, double deviation, std::size_t misaligned = 0) : misaligned(misaligned) {
    const auto size = [&](std::int64_t tokens) {
      return static_cast<std::size_t>(shape.batch * shape.heads * tokens * shape.dim) + misaligned;
    };
    const auto seed = static_cast<std::uint32_t>(shape.queries * 1009 + shape.keys * 31 + shape.dim);
    q = normal(size(shape.queries), 0, deviation, seed);
    k = normal(size(shape.keys), 0.25, 1, seed + 1);
    v = normal(size(shape.keys), 0.5, 1, seed + 2);
    task = {q.data() + misaligned, k.data() + misaligned, v.data() + misaligned, nullptr, nullptr, shape.batch, shape.heads, shape.queries,
            shape.keys, shape.dim, 1 / std::sqrt(static_cast<float>(shape.dim)), 0, 0, 0, 0};
  }

  // A mask for each head of each image, and for each query where `of_queries`.
  void add_mask(std::vector<float> values, bool of_images, bool of_heads, bool of_queries, bool of_keys = true) {
    mask = std::move(values);
    task.mask = mask.data();
    task.mask_key_stride = of_keys;
    std::int64_t stride = of_keys ? task.keys : 1;
    const auto next = [&](bool has, std::int64_t size) {
      const std::int64_t own = has ? stride : 0;
      if (has) stride *= size;
      return own;
    };
    task.mask_query_stride = next(of_queries, task.queries);
    task.mask_head_stride = next(of_heads, task.heads);
    task.mask_image_stride = next(of_images, task.batch);
    HANDHELD_CHECK(mask.size() == static_cast<std::size_t>(stride), "a mask of %zu values", mask.size());
  }

  void round_values(Operands operands) {
    for (float& each : v) each = testing::rounded(each, operands);
  }

  std::size_t misaligned;
  std::vector<float> q, k, v, mask;
  Attention task;
};

// Computes all pieces, in scratch memory that is full of what is not a number, and holds that only y and the scratch memory are written.
std::vector<float> run(const Variant& variant, Attention task, std::size_t misaligned = 0) {
  const auto size = static_cast<std::size_t>(task.batch * task.heads * task.queries * task.dim);
  std::vector<float> y(size + misaligned + 2 * kMargin, kUntouched);
  task.y = y.data() + kMargin + misaligned;
  const auto floats = static_cast<std::size_t>(variant.kernel.scratch(task));
  std::vector<float> memory(floats + 2 * kMargin + 16, kUntouched);
  void* start = memory.data() + kMargin;
  std::size_t space = (floats + 16) * sizeof(float);
  float* const scratch = static_cast<float*>(std::align(64, floats * sizeof(float), start, space));
  for (std::int64_t piece = variant.kernel.pieces(task); piece-- > 0;) {
    std::fill(scratch, scratch + floats, kNan);
    variant.kernel.run(task, piece, scratch);
  }
  for (std::size_t i = 0; i < kMargin; ++i) {
    HANDHELD_CHECK(y[i + misaligned] == kUntouched && task.y[size + i] == kUntouched, "%s wrote outside of its output",
                   variant.name.c_str());
    HANDHELD_CHECK(scratch[-1 - static_cast<int>(i)] == kUntouched && scratch[floats + i] == kUntouched,
                   "%s wrote outside of its scratch memory", variant.name.c_str());
  }
  return {task.y, task.y + size};
}

// Runs a task and checks every `step`-th query.
void check(const Variant& variant, const Inputs& inputs, std::int64_t step = 1) {
  const Attention& task = inputs.task;
  const std::vector<float> y = run(variant, task, inputs.misaligned);
  const testing::Rounded rounded(task, variant.operands);
  double worst = 0;
  for (std::int64_t row = 0; row < task.batch * task.heads * task.queries; row += step) {
    const std::int64_t query = row % task.queries, head = row / task.queries % task.heads, image = row / task.queries / task.heads;
    const testing::Expected expected = expected_query(rounded.task, image, head, query, variant.operands);
    for (std::int64_t i = 0; i < task.dim; ++i) {
      const float got = y[static_cast<std::size_t>(((image * task.queries + query) * task.heads + head) * task.dim + i)];
      const double error = std::abs(got - expected.y[static_cast<std::size_t>(i)]);
      const double share = expected.allowed > 0 ? error / expected.allowed : error;
      // not fmax: GCC 12 for arm64 fails to vectorize it (internal error)
      if (!(share <= worst)) worst = std::isnan(share) ? INFINITY : share;
    }
  }
  if (worst > worst_of_all) worst_of_all = worst;
  HANDHELD_CHECK(worst <= 1, "%s, batch %d, %d heads, %d queries, %d keys, dim %d, mask %d: %.2f times the allowed error",
                 variant.name.c_str(),
                 static_cast<int>(task.batch), static_cast<int>(task.heads), static_cast<int>(task.queries), static_cast<int>(task.keys),
                 static_cast<int>(task.dim), task.mask != nullptr, worst);
}

void check_shapes(const Variant& variant) {
  const Shape shapes[] = {
      {1, 1, 1, 1, 1},    {1, 1, 1, 1, 40},   {2, 3, 1, 5, 1},     {1, 2, 5, 1, 3},     {1, 1, 3, 7, 2},    {2, 2, 15, 9, 7},
      {1, 1, 16, 16, 16}, {1, 3, 17, 33, 17}, {1, 2, 31, 127, 15}, {2, 2, 33, 128, 9},  {1, 1, 47, 129, 8}, {1, 2, 48, 255, 33},
      {1, 1, 49, 257, 5}, {2, 1, 97, 64, 12}, {1, 1, 130, 300, 1}, {1, 3, 193, 77, 24}, {1, 1, 2, 3, 130},  {1, 1, 385, 40, 40},
  };
  for (const Shape& shape : shapes) {
    for (const double deviation : {0.1, 1.0, 8.0}) check(variant, Inputs(shape, deviation));
    check(variant, Inputs(shape, 1, /*misaligned=*/3));
  }
  if (variant.emulated) return;  // slow, and there is nothing of its own in large shapes
  // real layers: SD1.x self- and cross-attention, its smallest, the VAE's, CLIP's
  check(variant, Inputs({1, 2, 1024, 1024, 80}, 1), 61);
  check(variant, Inputs({1, 8, 256, 77, 160}, 1), 53);
  check(variant, Inputs({2, 8, 64, 64, 160}, 1), 47);
  check(variant, Inputs({1, 1, 576, 576, 512}, 1), 37);
  check(variant, Inputs({1, 1, 96, 4096, 40}, 1), 5);
}

void check_masks(const Variant& variant) {
  for (const Shape& shape : {Shape{1, 1, 1, 1, 1}, Shape{2, 3, 19, 37, 5}, Shape{1, 2, 77, 77, 64}, Shape{2, 2, 50, 200, 8}}) {
    const auto size = [&](bool of_images, bool of_heads, bool of_queries) {
      const std::int64_t rows = (of_images ? shape.batch : 1) * (of_heads ? shape.heads : 1) * (of_queries ? shape.queries : 1);
      return static_cast<std::size_t>(rows * shape.keys);
    };
    std::vector<float> causal(size(false, false, true), 0.0f);
    for (std::int64_t query = 0; query < shape.queries; ++query) {
      for (std::int64_t key = query + 1; key < shape.keys; ++key) causal[static_cast<std::size_t>(query * shape.keys + key)] = -kInfinity;
    }
    Inputs inputs(shape, 1);
    inputs.add_mask(causal, false, false, true);
    check(variant, inputs);
    for (float& each : causal) each = std::max(each, std::numeric_limits<float>::lowest());
    inputs.add_mask(causal, false, false, true);
    check(variant, inputs);
    for (const bool of_images : {false, true}) {
      for (const bool of_heads : {false, true}) {
        for (const bool of_queries : {false, true}) {
          std::vector<float> values = normal(size(of_images, of_heads, of_queries), 0, 3, 5);
          for (std::size_t i = 0; i < values.size(); i += 3) values[i] = -kInfinity;
          for (std::size_t i = 0; i < static_cast<std::size_t>(shape.keys); ++i) values[i] = -kInfinity;  // a whole row
          inputs.add_mask(values, of_images, of_heads, of_queries);
          check(variant, inputs);
        }
      }
    }
    // one value for all keys changes nothing, but that -inf masks them all
    std::vector<float> whole(static_cast<std::size_t>(shape.queries), 2.0f);
    whole.back() = -kInfinity;
    inputs.add_mask(whole, false, false, true, false);
    check(variant, inputs);
    for (const float each : {0.0f, -kInfinity}) {
      inputs.add_mask({each}, false, false, false, false);
      check(variant, inputs);
    }
  }
  HANDHELD_CHECK(variant.kernel.pieces(Inputs({1, 2, 0, 5, 3}, 1).task) == 0, "%s has work without queries", variant.name.c_str());
  // no key at all is as if all were masked
  const std::vector<float> y = run(variant, Inputs({1, 2, 5, 0, 3}, 1).task);
  HANDHELD_CHECK(y == std::vector<float>(30, 0.0f), "%s does not give 0 without keys", variant.name.c_str());
}

// Where every score is the lowest of all numbers, as masks that are not -inf make it, each key counts the same.
void check_lowest_scores(const Variant& variant) {
  Inputs inputs({1, 1, 20, 150, 3}, 1);
  inputs.add_mask(std::vector<float>(150, std::numeric_limits<float>::lowest()), false, false, false);
  inputs.round_values(variant.operands);
  const double allowed = variant.operands == Operands::kFloat16 ? 17 * 0.8 / 2048 : 1e-6;  // a chain's roundings, |v| being 0.8 on average
  const std::vector<float> y = run(variant, inputs.task);
  for (std::size_t i = 0; i < y.size(); ++i) {
    double mean = 0;
    for (std::size_t key = 0; key < 150; ++key) mean += inputs.v[key * 3 + i % 3] / 150.0;
    HANDHELD_CHECK(std::abs(y[i] - mean) < allowed, "%s: %g instead of the mean %g", variant.name.c_str(), static_cast<double>(y[i]), mean);
  }
}

// Scores whose exponentials are beyond float32 in both directions: the largest takes all, whenever it comes.
void check_large_scores(const Variant& variant) {
  const float size = variant.operands == Operands::kFloat16 ? 100 : 1e4f;  // of keys: 4 * 100 * 100 is below 65504
  for (const std::int64_t winner : {std::int64_t{0}, std::int64_t{127}, std::int64_t{128}, std::int64_t{299}}) {
    Inputs inputs({1, 1, 50, 300, 4}, 1);
    inputs.task.scale = 1;
    for (std::size_t i = 0; i < inputs.q.size(); ++i) inputs.q[i] = 100;
    for (std::size_t i = 0; i < inputs.k.size(); ++i) {
      inputs.k[i] = static_cast<std::int64_t>(i / 4) == winner ? size : -size + size / 1000 * static_cast<float>(i / 4);
    }
    inputs.round_values(variant.operands);
    const std::vector<float> y = run(variant, inputs.task);
    for (std::size_t i = 0; i < y.size(); ++i) {
      HANDHELD_CHECK(y[i] == inputs.v[static_cast<std::size_t>(winner) * 4 + i % 4], "%s: the largest score, of key %d, does not take all",
                     variant.name.c_str(), static_cast<int>(winner));
    }
  }
}

// What is not a number stays so for the queries that it reaches, and only for them.
void check_special_values(const Variant& variant) {
  const Shape shape{2, 2, 60, 140, 6};
  struct Fault {
    std::vector<float> Inputs::*where;
    std::size_t at;
    std::function<bool(std::int64_t image, std::int64_t head, std::int64_t query, std::int64_t element)> reaches;
  };
  const auto first_head = [](std::int64_t image, std::int64_t head, std::int64_t, std::int64_t) { return image == 0 && head == 0; };
  const Fault faults[] = {
      {&Inputs::q, 12 * 7 + 3, [](auto image, auto head, auto query, auto) { return image == 0 && head == 0 && query == 7; }},
      {&Inputs::k, 12 * 131 + 3, first_head},
      {&Inputs::v, 12 * 131 + 3, [](auto image, auto head, auto, auto element) { return image == 0 && head == 0 && element == 3; }},
  };
  for (const Fault& fault : faults) {
    Inputs inputs(shape, 1);
    (inputs.*fault.where)[fault.at] = kNan;
    const std::vector<float> y = run(variant, inputs.task);
    std::size_t at = 0;
    for (std::int64_t image = 0; image < shape.batch; ++image) {
      for (std::int64_t query = 0; query < shape.queries; ++query) {
        for (std::int64_t head = 0; head < shape.heads; ++head) {
          for (std::int64_t i = 0; i < shape.dim; ++i) {
            HANDHELD_CHECK(std::isnan(y[at]) == fault.reaches(image, head, query, i), "%s: query %d of head %d of image %d is %g",
                           variant.name.c_str(), static_cast<int>(query), static_cast<int>(head), static_cast<int>(image),
                           static_cast<double>(y[at]));
            ++at;
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    const bool bfloat16 = isa == Isa::kAvx512Bf16 || isa == Isa::kNeonBf16, float16 = isa == Isa::kNeonFp16 || isa == Isa::kNeonBf16;
    const std::string name = name_of(isa);
    std::vector<Variant> variants = {{"flash, " + name, flash_attention_kernel(isa, Operands::kFloat32)},
                                     {"partial softmax, " + name, partial_softmax_attention_kernel(isa)}};
    if (bfloat16) variants.push_back({"flash in bfloat16, " + name, flash_attention_kernel(isa, Operands::kBfloat16), Operands::kBfloat16});
    variants.push_back({"flash in float16, " + name, flash_attention_kernel(isa, Operands::kFloat16), Operands::kFloat16, !float16});
    for (const Variant& variant : variants) {
      worst_of_all = 0;
      check_shapes(variant);
      check_masks(variant);
      check_lowest_scores(variant);
      check_large_scores(variant);
      check_special_values(variant);
      std::printf("%s: at worst %.2f times the allowed error\n", variant.name.c_str(), worst_of_all);
    }
  }
  return handheld::testing::report();
}
