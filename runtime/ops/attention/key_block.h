// A block of keys and values as the products take them: floats where they lie, or pairs of 16-bit numbers made of them.
#pragma once

#include <cstdint>

#include "../bfloat16.h"
#include "../float16.h"
#include "../vector.h"
#include "attention.h"

namespace handheld {
namespace {

constexpr std::int64_t kKeyBlock = 96;  // keys whose scores with a tile stay in the first-level cache: 18 KB in 48 lanes

// One head of one image.
struct Head {
  const float *q, *k, *v, *mask;
  float* y;
  std::int64_t width;  // from a token to the next
};

inline Head head_of(const Attention& task, std::int64_t index) {
  const std::int64_t image = index / task.heads, head = index % task.heads, width = task.heads * task.dim;
  const std::int64_t of_queries = image * task.queries * width + head * task.dim, of_keys = image * task.keys * width + head * task.dim;
  const float* mask = task.mask == nullptr ? nullptr : task.mask + image * task.mask_image_stride + head * task.mask_head_stride;
  return {task.q + of_queries, task.k + of_keys, task.v + of_keys, mask, task.y + of_queries, width};
}

// A block of keys as the products take them: what `depth` elements of a key, or an element of `depth` values, make is in the place of a
// float. Keys are k_stride floats apart, and v_stride each `depth` values.
struct KeyBlock {
  const float *k, *v;
  std::int64_t k_stride, v_stride;
};

// Products of floats.
template <typename V>
struct Floats {
  using Vector = V;
  using Register = typename V::Register;
  static constexpr int depth = 1;  // factors that are in the place of a float

  static Register join(const Register (&factors)[1]) { return factors[0]; }
  static Register multiply_add(Register a, Register b, Register c) { return V::multiply_add(a, b, c); }

  // How many floats of memory the keys from `key` on take as products want them, and the keys there.
  static constexpr std::int64_t block_floats(std::int64_t) { return 0; }
  static KeyBlock block(const Attention&, const Head& head, std::int64_t key, std::int64_t, float*) {
    return {head.k + key * head.width, head.v + key * head.width, head.width, head.width};
  }
};

// Products of pairs of 16-bit numbers; N is one of ../bfloat16.h or ../float16.h.
template <typename N>
struct Pairs {
  using Narrow = N;
  using Vector = typename N::Vector;
  using Register = typename N::Register;
  static constexpr int depth = 2, lanes = Vector::lanes;

  static Register join(const Register (&factors)[2]) { return N::pair(factors[0], factors[1]); }
  static Register multiply_add(Register a, Register b, Register c) { return N::multiply_add(a, b, c); }

  // k [kKeyBlock][k_stride] and v [kKeyBlock / 2][v_stride], whole registers.
  static constexpr std::int64_t k_stride(std::int64_t dim) { return (dim + 2 * lanes - 1) / (2 * lanes) * lanes; }
  static constexpr std::int64_t v_stride(std::int64_t dim) { return (dim + lanes - 1) / lanes * lanes; }
  static constexpr std::int64_t block_floats(std::int64_t dim) { return kKeyBlock * k_stride(dim) + kKeyBlock / 2 * v_stride(dim); }

  static Register load(const float* from, std::int64_t count) {
    if (count >= lanes) return Vector::load(from);
    return count <= 0 ? Vector::broadcast(0.0f) : Vector::load_part(from, static_cast<int>(count), 0.0f);
  }

  static KeyBlock block(const Attention& task, const Head& head, std::int64_t key, std::int64_t keys, float* memory) {
    const KeyBlock block{memory, memory + kKeyBlock * k_stride(task.dim), k_stride(task.dim), v_stride(task.dim)};
    float* const v = memory + kKeyBlock * block.k_stride;
    for (std::int64_t i = 0; i < keys; ++i) {
      const float* const from = head.k + (key + i) * head.width;
      for (std::int64_t at = 0; at < task.dim; at += 2 * lanes) {
        Vector::store(memory + i * block.k_stride + at / 2,
                      N::narrow(load(from + at, task.dim - at), load(from + at + lanes, task.dim - at - lanes)));
      }
    }
    for (std::int64_t i = 0; i < keys; i += 2) {
      const float* const from = head.v + (key + i) * head.width;
      for (std::int64_t at = 0; at < task.dim; at += lanes) {
        const std::int64_t count = task.dim - at;
        Vector::store(v + i / 2 * block.v_stride + at,
                      N::pair(load(from + at, count), load(from + head.width + at, i + 1 < keys ? count : 0)));
      }
    }
    return block;
  }
};

}  // namespace
}  // namespace handheld
