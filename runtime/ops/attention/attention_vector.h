// The kernels of attention.h, written once for any vector of vector.h.
//
// Queries are the lanes: q is transposed as it is loaded, a score is a vector over queries, and so are the maxima and sums of softmax,
// which therefore never go across lanes. A tile of queries is as many vectors as the products hold in registers; its scores with a block
// of keys stay in the first-level cache from the one product to the other. k and v are read where they are, one element for all lanes;
// or a block of them is first made what the products take.
#pragma once

#include <cstdint>

#include "../vector_math.h"
#include "attention.h"
#include "key_block.h"

namespace handheld {
namespace {

constexpr std::int64_t kStateFloats = 256 << 10;  // of the tiles that share a block of keys: 1 MB, a second-level cache
constexpr std::int64_t kMostTiles = 8;            // more would leave threads without work where queries are few
constexpr float kLowest = -3.40282347e38f;        // no finite score is below it
constexpr float kSmallest = 1.17549435e-38f;       // no sum but 0 is below it

template <int kValue>
struct Count {};

// Calls body(Count<n>, at) for panels of n = kCount, then of the halves of that, until `count` is covered.
template <int kCount, typename Body>
inline void in_panels(std::int64_t at, std::int64_t count, Body body) {
  for (; at + kCount <= count; at += kCount) body(Count<kCount>(), at);
  if constexpr (kCount > 1) {
    if (at < count) in_panels<kCount / 2>(at, count, body);
  }
}

inline int smaller(std::int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

// kColumns vectors of queries, and what is known of them so far. kRows: how many keys, or elements of values, a product takes at once.
template <typename P, int kRows, int kColumns>
struct Tile {
  using V = typename P::Vector;
  using Register = typename V::Register;
  using Vectors = Register[kColumns];
  static constexpr int kWidth = kColumns * V::lanes;

  static constexpr std::int64_t steps(std::int64_t factors) { return (factors + P::depth - 1) / P::depth; }

  // Where a tile keeps what it has: queries [steps of dim][kWidth], output [dim][kWidth], maximum and sum [kWidth].
  static constexpr std::int64_t state(std::int64_t dim) { return (steps(dim) + dim + 2) * kWidth; }

  Tile(const Attention& task, const Head& head, std::int64_t first, float* state)
      : task(task), head(head), first(first), count(smaller(task.queries - first, kWidth)), queries(state),
        output(queries + steps(task.dim) * kWidth), maximum(output + task.dim * kWidth), sum(maximum + kWidth) {}

  const Attention& task;
  const Head& head;
  const std::int64_t first;
  const int count;
  float *const queries, *const output, *const maximum, *const sum;

  // The queries, scaled and transposed; nothing seen yet.
  void start() const {
    const Register scale = V::broadcast(task.scale), zero = V::broadcast(0.0f);
    for (std::int64_t at = 0; at < task.dim; at += V::lanes) {
      const int elements = smaller(task.dim - at, V::lanes);
      for (int column = 0; column < kColumns; ++column) {
        Register square[V::lanes];
        for (int i = 0; i < V::lanes; ++i) {
          const int query = column * V::lanes + i;
          const float* from = head.q + (first + query) * head.width + at;
          square[i] = query >= count ? zero : elements == V::lanes ? V::load(from) : V::load_part(from, elements, 0.0f);
        }
        V::transpose(square);
        for (int i = 0; i < elements; i += P::depth) {
          Register factors[P::depth];
          for (int j = 0; j < P::depth; ++j) factors[j] = V::multiply(square[i + j], scale);  // of no element: 0
          V::store(queries + (at + i) / P::depth * kWidth + column * V::lanes, P::join(factors));
        }
      }
    }
    for (std::int64_t at = 0; at < task.dim * kWidth; at += V::lanes) V::store(output + at, zero);
    for (int at = 0; at < kWidth; at += V::lanes) {
      V::store(maximum + at, V::broadcast(kLowest));
      V::store(sum + at, zero);
    }
  }

  // sums[row] += the sum over steps of a[row * row_stride + step * step_stride] * b[step]
  template <int kCount>
  static void multiply(Register (&sums)[kCount][kColumns], const float* a, std::int64_t row_stride, std::int64_t step_stride,
                       const float* b, std::int64_t steps) {
    if constexpr (requires { requires P::Narrow::has_own_loop; }) {
      const auto columns = [b](std::int64_t step, int i) { return b + step * kWidth + i * V::lanes; };
      P::Narrow::add_products(sums, a, row_stride, step_stride, columns, steps, [](std::int64_t) {});
    } else {
      for (std::int64_t step = 0; step < steps; ++step, a += step_stride, b += kWidth) {
        Register vectors[kColumns];
        for (int column = 0; column < kColumns; ++column) vectors[column] = V::load(b + column * V::lanes);
        for (int row = 0; row < kCount; ++row) {
          const Register element = V::broadcast(a[row * row_stride]);
          for (int column = 0; column < kColumns; ++column) {
            sums[row][column] = P::multiply_add(element, vectors[column], sums[row][column]);
          }
        }
      }
    }
  }

  // Asks for rows of keys or values to be in the second-level cache when they are needed.
  template <int kCount>
  void prefetch(const float* from, std::int64_t token) const {
    if (token + kCount > task.keys) return;
    for (int row = 0; row < kCount; ++row) {
      for (std::int64_t at = 0; at < task.dim; at += 16) __builtin_prefetch(from + (token + row) * head.width + at, 0, 2);
    }
  }

  // scores [keys][kWidth] of the keys from `key` on, which are in `block`
  void score(const KeyBlock& block, std::int64_t key, std::int64_t keys, float* scores) const {
    in_panels<kRows>(0, keys, [&]<int kCount>(Count<kCount>, std::int64_t at) {
      Register sums[kCount][kColumns];
      for (auto& row : sums) {
        for (Register& each : row) each = V::broadcast(0.0f);
      }
      prefetch<kCount>(head.k, key + at + kKeyBlock);
      prefetch<kCount>(head.v, key + at + (P::depth > 1 ? kKeyBlock : 0));  // values in pairs have been read already
      multiply(sums, block.k + at * block.k_stride, block.k_stride, 1, queries, steps(task.dim));
      for (int row = 0; row < kCount; ++row) {
        for (int column = 0; column < kColumns; ++column) V::store(scores + (at + row) * kWidth + column * V::lanes, sums[row][column]);
      }
    });
    if (head.mask != nullptr) add_mask(key, keys, scores);
  }

  void add_mask(std::int64_t key, std::int64_t keys, float* scores) const {
    for (std::int64_t at = 0; at < keys; at += V::lanes) {
      const int here = smaller(keys - at, V::lanes);
      for (int column = 0; column < kColumns; ++column) {
        Register square[V::lanes];
        for (int i = 0; i < V::lanes; ++i) {
          const int query = column * V::lanes + i;
          const float* from = head.mask + (first + query) * task.mask_query_stride + (key + at) * task.mask_key_stride;
          square[i] = query >= count               ? V::broadcast(0.0f)
                      : task.mask_key_stride == 0 ? V::broadcast(*from)
                                                  : V::load_part(from, here, 0.0f);
        }
        V::transpose(square);
        for (int i = 0; i < here; ++i) {
          float* to = scores + (at + i) * kWidth + column * V::lanes;
          V::store(to, V::add(V::load(to), square[i]));
        }
      }
    }
  }

  // Raises the maxima to those of the scores. What was summed with the old ones is to be multiplied by `correction`.
  void raise_maximum(const float* scores, std::int64_t keys, Vectors& correction) const {
    Register now[kColumns];
    for (int column = 0; column < kColumns; ++column) now[column] = V::load(maximum + column * V::lanes);
    for (std::int64_t key = 0; key < keys; ++key) {
      for (int column = 0; column < kColumns; ++column) {
        now[column] = V::max(V::load(scores + key * kWidth + column * V::lanes), now[column]);
      }
    }
    for (int column = 0; column < kColumns; ++column) {
      correction[column] = exp_below_zero<V>(V::subtract(V::load(maximum + column * V::lanes), now[column]));
      V::store(maximum + column * V::lanes, now[column]);
    }
  }

  // Adds up exp(score - maximum), and calls keep(row, column, terms) for each vector of them that products take, which are over keys.
  template <typename Keep>
  void sum_terms(float* scores, std::int64_t keys, const Vectors& correction, Keep keep) const {
    Register most[kColumns], total[kColumns];
    for (int column = 0; column < kColumns; ++column) {
      most[column] = V::load(maximum + column * V::lanes);
      total[column] = V::multiply(V::load(sum + column * V::lanes), correction[column]);
    }
    const auto sum_up = [&]<int kCount>(Count<kCount>, std::int64_t key) {
      for (int column = 0; column < kColumns; ++column) {
        Register terms[P::depth];
        for (int i = 0; i < P::depth; ++i) {
          if (i < kCount) {
            terms[i] = exp_below_zero<V>(V::subtract(V::load(scores + (key + i) * kWidth + column * V::lanes), most[column]));
            total[column] = V::add(total[column], terms[i]);
          } else {
            terms[i] = V::broadcast(0.0f);
          }
        }
        keep(scores + key / P::depth * kWidth + column * V::lanes, P::join(terms));
      }
    };
    in_panels<P::depth>(0, keys, sum_up);
    for (int column = 0; column < kColumns; ++column) V::store(sum + column * V::lanes, total[column]);
  }

  // terms = exp(score - maximum) * factor
  void load_terms(const float* scores, std::int64_t keys, const Vectors& factor, float* terms) const {
    Vectors most;
    for (int column = 0; column < kColumns; ++column) most[column] = V::load(maximum + column * V::lanes);
    for (std::int64_t key = 0; key < keys; ++key) {
      for (int column = 0; column < kColumns; ++column) {
        const std::int64_t at = key * kWidth + column * V::lanes;
        const Register term = exp_below_zero<V>(V::subtract(V::load(scores + at), most[column]));
        V::store(terms + at, V::multiply(term, factor[column]));
      }
    }
  }

  // output = output * correction + the values of `block` weighted with `terms` [steps of keys][kWidth]
  void add_values(const KeyBlock& block, std::int64_t keys, const float* terms, const Vectors& correction) const {
    in_panels<kRows>(0, task.dim, [&]<int kCount>(Count<kCount>, std::int64_t at) {
      Register sums[kCount][kColumns];
      for (int row = 0; row < kCount; ++row) {
        for (int column = 0; column < kColumns; ++column) {
          sums[row][column] = V::multiply(V::load(output + (at + row) * kWidth + column * V::lanes), correction[column]);
        }
      }
      multiply(sums, block.v + at, 1, block.v_stride, terms, steps(keys));
      for (int row = 0; row < kCount; ++row) {
        for (int column = 0; column < kColumns; ++column) V::store(output + (at + row) * kWidth + column * V::lanes, sums[row][column]);
      }
    });
  }

  // The factor that divides by the sum; a number where the sum is 0, as then the output is 0 too.
  void inverse_sum(Vectors& factor) const {
    for (int column = 0; column < kColumns; ++column) {
      factor[column] = V::divide(V::broadcast(1.0f), V::max(V::broadcast(kSmallest), V::load(sum + column * V::lanes)));
    }
  }

  // Writes output * factor to y.
  void finish(const Vectors& factor) const {
    for (std::int64_t at = 0; at < task.dim; at += V::lanes) {
      const int elements = smaller(task.dim - at, V::lanes);
      for (int column = 0; column < kColumns; ++column) {
        Register square[V::lanes];
        for (int i = 0; i < V::lanes; ++i) {
          const float* from = output + (at + i) * kWidth + column * V::lanes;
          square[i] = i < elements ? V::multiply(V::load(from), factor[column]) : V::broadcast(0.0f);
        }
        V::transpose(square);
        const int here = smaller(count - column * V::lanes, V::lanes);
        for (int i = 0; i < here; ++i) {
          float* to = head.y + (first + column * V::lanes + i) * head.width + at;
          if (elements == V::lanes) {
            V::store(to, square[i]);
          } else {
            V::store_part(to, square[i], elements);
          }
        }
      }
    }
  }
};

// Where a piece of the work is: some queries of one head.
struct Piece {
  std::int64_t head, first, last;
};

inline std::int64_t blocks_of(const Attention& task, std::int64_t queries) { return (task.queries + queries - 1) / queries; }

inline Piece piece_at(const Attention& task, std::int64_t index, std::int64_t queries) {
  const std::int64_t blocks = blocks_of(task, queries), first = index % blocks * queries;
  return {index / blocks, first, first + queries < task.queries ? first + queries : task.queries};
}

// Calls body with the type of the tile for `queries` queries: as few vectors as hold them.
template <typename P, int kRows, int kColumns, typename Body>
inline void with_tile(std::int64_t queries, Body body) {
  if constexpr (kColumns > 1) {
    if (queries <= (kColumns - 1) * P::Vector::lanes) return with_tile<P, kRows, kColumns - 1>(queries, body);
  }
  body.template operator()<Tile<P, kRows, kColumns>>();
}

// Calls body(first key, number of keys) for each block of keys.
template <typename Body>
inline void for_each_block(const Attention& task, Body body) {
  for (std::int64_t key = 0; key < task.keys; key += kKeyBlock) body(key, task.keys - key < kKeyBlock ? task.keys - key : kKeyBlock);
}

template <typename P, int kRows, int kColumns>
struct Flash {
  using V = typename P::Vector;
  using Register = typename V::Register;
  using Whole = Tile<P, kRows, kColumns>;
  static constexpr int kWidth = Whole::kWidth;

  // How many tiles a piece has: as many as fit share the blocks of keys that they read, and all pieces are about as large.
  static std::int64_t tiles(const Attention& task) {
    if (task.queries == 0) return 1;
    const std::int64_t fitting = kStateFloats / Whole::state(task.dim);
    const std::int64_t most = fitting < 1 ? 1 : fitting > kMostTiles ? kMostTiles : fitting;
    const std::int64_t all = blocks_of(task, kWidth), pieces = (all + most - 1) / most;
    return (all + pieces - 1) / pieces;
  }

  static std::int64_t pieces(const Attention& task) { return task.batch * task.heads * blocks_of(task, tiles(task) * kWidth); }

  static std::int64_t scratch(const Attention& task) {
    return kKeyBlock * kWidth + tiles(task) * Whole::state(task.dim) + P::block_floats(task.dim);
  }

  static void run(const Attention& task, std::int64_t index, float* scratch) {
    const Piece piece = piece_at(task, index, tiles(task) * kWidth);
    const Head head = head_of(task, piece.head);
    float* const scores = scratch;
    float* const states = scores + kKeyBlock * kWidth;
    float* const block_memory = states + tiles(task) * Whole::state(task.dim);
    const auto each_tile = [&](auto body) {
      float* state = states;
      for (std::int64_t first = piece.first; first < piece.last; first += kWidth, state += Whole::state(task.dim)) {
        with_tile<P, kRows, kColumns>(piece.last - first, [&]<typename T>() { body(T(task, head, first, state)); });
      }
    };
    each_tile([](const auto& tile) { tile.start(); });
    for_each_block(task, [&](std::int64_t key, std::int64_t keys) {
      const KeyBlock block = P::block(task, head, key, keys, block_memory);
      each_tile([&]<typename T>(const T& tile) {
        typename T::Vectors correction;
        tile.score(block, key, keys, scores);
        tile.raise_maximum(scores, keys, correction);
        tile.sum_terms(scores, keys, correction, [](float* at, Register terms) { V::store(at, terms); });
        tile.add_values(block, keys, scores, correction);
      });
    });
    each_tile([]<typename T>(const T& tile) {
      typename T::Vectors factor;
      tile.inverse_sum(factor);
      tile.finish(factor);
    });
  }
};

template <typename P, int kRows, int kColumns>
struct PartialSoftmax {
  using V = typename P::Vector;
  using Register = typename V::Register;
  using Whole = Tile<P, kRows, kColumns>;
  static constexpr int kWidth = Whole::kWidth;

  static std::int64_t pieces(const Attention& task) { return task.batch * task.heads * blocks_of(task, kWidth); }

  static std::int64_t scratch(const Attention& task) { return Whole::state(task.dim) + (task.keys + kKeyBlock) * kWidth; }

  static void run(const Attention& task, std::int64_t index, float* scratch) {
    const Piece piece = piece_at(task, index, kWidth);
    const Head head = head_of(task, piece.head);
    with_tile<P, kRows, kColumns>(piece.last - piece.first, [&]<typename T>() {
      float* const terms = scratch;
      float* const scores = scratch + kKeyBlock * kWidth;  // of all keys
      const T tile(task, head, piece.first, scores + task.keys * kWidth);
      tile.start();
      for_each_block(task, [&](std::int64_t key, std::int64_t keys) {
        float* const block = scores + key * T::kWidth;
        typename T::Vectors correction;
        tile.score(P::block(task, head, key, keys, nullptr), key, keys, block);
        tile.raise_maximum(block, keys, correction);
        tile.sum_terms(block, keys, correction, [](float*, Register) {});
      });
      typename T::Vectors one, factor;
      for (Register& each : one) each = V::broadcast(1.0f);
      tile.inverse_sum(factor);
      for_each_block(task, [&](std::int64_t key, std::int64_t keys) {
        tile.load_terms(scores + key * T::kWidth, keys, factor, terms);
        tile.add_values(P::block(task, head, key, keys, nullptr), keys, terms, one);
      });
      tile.finish(one);
    });
  }
};

template <typename P, int kRows, int kColumns>
constexpr AttentionKernel flash_attention() {
  using Kernel = Flash<P, kRows, kColumns>;
  return {Kernel::pieces, Kernel::scratch, Kernel::run};
}

template <typename P, int kRows, int kColumns>
constexpr AttentionKernel partial_softmax_attention() {
  using Kernel = PartialSoftmax<P, kRows, kColumns>;
  return {Kernel::pieces, Kernel::scratch, Kernel::run};
}

}  // namespace
}  // namespace handheld
