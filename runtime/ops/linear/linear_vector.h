// The kernels of linear.h, written once for any vector of vector.h.
//
// Tiles of kRows rows by kPanels panels of the result stay in registers while the depth is walked: the panels' rows are loaded as vectors,
// the activations are broadcast, read where they lie. The panels of a block stay in the second-level cache while the tiles of all its rows
// pass over them, and while they do they fetch the next panels there.
#pragma once

#include "../bfloat16.h"
#include "../float16.h"
#include "../vector_math.h"
#include "linear.h"

namespace handheld {
namespace {

constexpr std::int64_t kDepthBlock = 1280;  // of 64 columns that is 320 KiB: it leaves room in a second-level cache of 512 KiB
constexpr std::int64_t kFetchSteps = 16;    // as far ahead weights are fetched into the first-level cache
constexpr std::int64_t kRowsAhead = 4;      // as far ahead pictures are fetched
constexpr std::int64_t kLine = 64;          // bytes of a cache line, and of one step of a panel: 16 floats, or 16 pairs of 16-bit numbers

// What the tiles are templates over: how a step of the depth loads weights and activations and adds their products to the sums. A step
// takes `depth` values of the depth, in `parts` products: activations in pairs (depth 2, parts 1) are padded to whole steps, others not.

template <typename V>
struct Floats : V {
  using Vector = V;
  using Weight = float;
  using Activation = float;
  static constexpr int depth = 1, parts = 1;
  static typename V::Register weights(const float* panel, int) { return V::load(panel); }
  static typename V::Register activation(const float* x, int) { return V::broadcast(*x); }
};

// bfloat16 weights made floats, which is exact
template <typename V>
struct WidenedPairs : V {
  using Vector = V;
  using Weight = std::uint16_t;
  using Activation = float;
  static constexpr int depth = 2, parts = 2;
  static typename V::Register weights(const std::uint16_t* panel, int part) {
    return part == 0 ? V::load_first(panel) : V::load_second(panel);
  }
  static typename V::Register activation(const float* x, int part) { return V::broadcast(x[part]); }
};

// Products of pairs of 16-bit numbers; N is one of ../bfloat16.h or ../float16.h.
template <typename N>
struct Pairs : N::Vector {
  using Narrow = N;
  using Vector = typename N::Vector;
  using Register = typename N::Register;
  using Weight = std::uint16_t;
  using Activation = std::uint16_t;
  static constexpr int depth = 2, parts = 1;
  static Register weights(const std::uint16_t* panel, int) { return Vector::load(reinterpret_cast<const float*>(panel)); }
  static Register activation(const std::uint16_t* x, int) {
    float pair;
    std::memcpy(&pair, x, sizeof(pair));
    return Vector::broadcast(pair);
  }
  static Register multiply_add(Register x, Register weights, Register sum) { return N::multiply_add(x, weights, sum); }
};

// What a tile fetches into the second-level cache while it computes: `each` lines in every eighth step.
struct Fetch {
  const char* at;
  std::int64_t each;
};

template <typename P, int kRows, int kVectors>
using Sums = typename P::Register[kRows][kVectors];

// Adds `parts` of one step to the sums of a tile.
template <typename P, int kRows, int kPanels, int kParts>
inline __attribute__((always_inline)) void add_step(Sums<P, kRows, kPanels * kPanelColumns / P::lanes>& sums,
                                                    const typename P::Activation* x, std::int64_t stride,
                                                    const typename P::Weight* const (&panels)[kPanels], std::int64_t step) {
  constexpr int kVectors = kPanelColumns / P::lanes;
#pragma GCC unroll 8
  for (int panel = 0; panel < kPanels; ++panel) __builtin_prefetch(panels[panel] + (step + kFetchSteps) * kPanelColumns * P::depth);
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    typename P::Register weights[kPanels * kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kPanels * kVectors; ++i) {
      weights[i] = P::weights(panels[i / kVectors] + (step * kPanelColumns + i % kVectors * P::lanes) * P::depth, part);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const typename P::Register activation = P::activation(x + row * stride + step * P::depth, part);
#pragma GCC unroll 16
      for (int i = 0; i < kPanels * kVectors; ++i) sums[row][i] = P::multiply_add(activation, weights[i], sums[row][i]);
    }
  }
}

// Adds the products over `depth` to the sums of a tile.
template <typename P, int kRows, int kPanels>
inline __attribute__((always_inline)) void add_products(Sums<P, kRows, kPanels * kPanelColumns / P::lanes>& sums,
                                                        const typename P::Activation* x, std::int64_t stride,
                                                        const typename P::Weight* const (&panels)[kPanels], std::int64_t depth,
                                                        Fetch fetch) {
  const std::int64_t steps = P::parts == P::depth ? depth / P::depth : (depth + 1) / 2;
  const auto fetch_some = [&] {
    for (std::int64_t i = 0; i < fetch.each; ++i, fetch.at += kLine) __builtin_prefetch(fetch.at, 0, 2);
  };
  if constexpr (requires { requires P::Narrow::has_own_loop; }) {
    const auto columns = [&](std::int64_t step, int i) {
      return reinterpret_cast<const float*>(panels[i * P::lanes / kPanelColumns]) + step * kPanelColumns + i * P::lanes % kPanelColumns;
    };
    const auto ahead = [&](std::int64_t step) {
      for (int panel = 0; panel < kPanels; ++panel) __builtin_prefetch(columns(step + kFetchSteps, panel * kPanelColumns / P::lanes));
      if (step % 8 == 0) fetch_some();
    };
    P::Narrow::add_products(sums, reinterpret_cast<const float*>(x), stride / 2, 1, columns, steps, ahead);
  } else {
    std::int64_t step = 0;
    for (; step + 8 <= steps; step += 8) {
      fetch_some();
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) add_step<P, kRows, kPanels, P::parts>(sums, x, stride, panels, step + i);
    }
    for (; step < steps; ++step) add_step<P, kRows, kPanels, P::parts>(sums, x, stride, panels, step);
    if (P::parts > 1 && depth % P::depth != 0) add_step<P, kRows, kPanels, 1>(sums, x, stride, panels, steps);
  }
}

template <typename P>
inline const typename P::Activation* activations(const Linear& task) {
  if constexpr (sizeof(typename P::Activation) == sizeof(float)) {
    return task.x;
  } else {
    return task.rounded;
  }
}

// The first `count` lanes of what lies at `from`, where that is not all of them.
template <typename P>
inline typename P::Register load_some(const float* from, std::int64_t count) {
  if (count >= P::lanes) return P::load(from);
  return P::load_part(from, count < 0 ? 0 : static_cast<int>(count), 0.0f);
}

template <typename P>
inline void store_some(float* to, typename P::Register v, std::int64_t count) {
  if (count >= P::lanes) return P::store(to, v);
  if (count > 0) P::store_part(to, v, static_cast<int>(count));
}

// A part of the depth: the first begins with bias and residual, the others with what y holds.
struct Depth {
  std::int64_t from, size;
};

template <typename P, int kRows, int kPanels>
inline void tile(const Linear& task, std::int64_t row, std::int64_t panel, Depth depth, Fetch fetch) {
  constexpr int kVectors = kPanels * kPanelColumns / P::lanes;
  const std::int64_t stride = task.depth + (P::parts == P::depth ? 0 : task.depth % 2);
  const std::int64_t panel_size = (task.depth + P::depth - 1) / P::depth * P::depth * kPanelColumns;
  const typename P::Weight* panels[kPanels];
  for (int i = 0; i < kPanels; ++i) {
    panels[i] = static_cast<const typename P::Weight*>(task.weights) + (panel + i) * panel_size + depth.from * kPanelColumns;
  }
  Sums<P, kRows, kVectors> sums;
  const std::int64_t column = panel * kPanelColumns, left = task.columns - column;
  float* const y = task.y + row * task.stride + column;
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t at = i * P::lanes;
    if (depth.from > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r][i] = load_some<P>(y + r * task.stride + at, left - at);
      continue;
    }
    if (task.bias_of_rows) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r][i] = P::broadcast(task.bias[row + r]);
    } else {
      const typename P::Register bias = load_some<P>(task.bias + column + at, left - at);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r][i] = bias;
    }
    if (task.residual == nullptr) continue;
    const float* const residual = task.residual + row * task.stride + column + at;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r][i] = P::add(sums[r][i], load_some<P>(residual + r * task.stride, left - at));
  }
  add_products<P, kRows, kPanels>(sums, activations<P>(task) + row * stride + depth.from, stride, panels, depth.size, fetch);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) store_some<P>(y + r * task.stride + i * P::lanes, sums[r][i], left - i * P::lanes);
  }
}

// kPanels panels of y: as many of the value, and as many of the gate.
template <typename P, int kRows, int kPanels>
inline void gated_tile(const Linear& task, std::int64_t row, std::int64_t panel, Depth depth, Fetch fetch) {
  constexpr int kVectors = kPanels * kPanelColumns / P::lanes;
  const std::int64_t stride = task.depth + (P::parts == P::depth ? 0 : task.depth % 2);
  const std::int64_t panel_size = (task.depth + P::depth - 1) / P::depth * P::depth * kPanelColumns;
  const std::int64_t channels = task.columns / 2, column = panel * kPanelColumns;
  const typename P::Weight* panels[2 * kPanels];
  for (int i = 0; i < kPanels; ++i) {
    panels[i] = static_cast<const typename P::Weight*>(task.weights) + (panel + i) * panel_size;
    panels[kPanels + i] = panels[i] + channels / kPanelColumns * panel_size;
  }
  Sums<P, kRows, 2 * kVectors> sums;
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    const typename P::Register value = P::load(task.bias + column + i * P::lanes);
    const typename P::Register gate = P::load(task.bias + channels + column + i * P::lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r][i] = value, sums[r][kVectors + i] = gate;
  }
  add_products<P, kRows, 2 * kPanels>(sums, activations<P>(task) + row * stride, stride, panels, depth.size, fetch);
  float* const y = task.y + row * channels + column;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      P::store(y + r * channels + i * P::lanes, P::multiply(sums[r][i], gelu<typename P::Vector>(sums[r][kVectors + i])));
    }
  }
}

// The panels that are computed next: where their part of the depth begins, the bytes from one to the next, and the lines of each.
struct Next {
  const char* at;  // null where there are none
  std::int64_t stride, lines;
};

// All rows of a block for kPanels panels: tiles of kRows rows, and a smaller one for the rest.
template <typename P, bool kGated, int kRows, int kPanels>
inline void rows_of_tiles(const Linear& task, std::int64_t row, std::int64_t last_row, std::int64_t panel, Depth depth, Next next) {
  constexpr int kWeightPanels = kGated ? 2 * kPanels : kPanels;
  const std::int64_t tiles = (last_row - row + kRows - 1) / kRows, eighths = depth.size / P::depth / 8;
  // one tile takes no longer than its weights take to come: there is nothing to fetch beside it
  const std::int64_t each = next.at == nullptr || eighths == 0 || tiles == 1
                                ? 0
                                : (kWeightPanels * next.lines + tiles * eighths - 1) / (tiles * eighths);
  std::int64_t line = 0;
  for (; row + kRows <= last_row; row += kRows, line += each * eighths) {
    const bool any = each > 0 && line < kPanels * next.lines;  // of a gated tile the gates are left to the hardware
    const Fetch fetch{any ? next.at + line / next.lines * next.stride + line % next.lines * kLine : nullptr, any ? each : 0};
    if constexpr (kGated) {
      gated_tile<P, kRows, kPanels>(task, row, panel, depth, fetch);
    } else {
      tile<P, kRows, kPanels>(task, row, panel, depth, fetch);
    }
  }
  if constexpr (kRows > 1) {
    if (row < last_row) rows_of_tiles<P, kGated, kRows - 1, kPanels>(task, row, last_row, panel, depth, {nullptr, 0, 0});
  }
}

template <typename P, int kRows, int kPanels>
void linear(const Linear& task, const LinearBlock& block) {
  const bool gated = task.form == LinearForm::kGeglu;
  // of a gated tile the sums are no results before the last product, so its depth is not divided
  const std::int64_t blocks = gated || task.depth <= kDepthBlock ? 1 : (task.depth + kDepthBlock - 1) / kDepthBlock;
  const std::int64_t size = ((task.depth + blocks - 1) / blocks + 1) / 2 * 2;
  const std::int64_t panel_bytes = (task.depth + P::depth - 1) / P::depth * kLine;
  constexpr int kGatedPanels = kPanels > 1 ? kPanels / 2 : 1, kGatedRows = kPanels > 1 ? kRows : kRows / 2;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t from = i * size;
    const Depth depth{from, task.depth - from < size ? task.depth - from : size};
    const auto next = [&](std::int64_t panel) -> Next {  // the panels that come after those up to `panel`
      if (panel >= block.last_panel) return {nullptr, 0, 0};
      return {static_cast<const char*>(task.weights) + panel * panel_bytes + from / P::depth * kLine, panel_bytes, depth.size / P::depth};
    };
    std::int64_t panel = block.first_panel;
    if (gated) {
      for (; panel + kGatedPanels <= block.last_panel; panel += kGatedPanels) {
        rows_of_tiles<P, true, kGatedRows, kGatedPanels>(task, block.first_row, block.last_row, panel, depth, next(panel + kGatedPanels));
      }
      for (; panel < block.last_panel; ++panel) {
        rows_of_tiles<P, true, kGatedRows, 1>(task, block.first_row, block.last_row, panel, depth, {nullptr, 0, 0});
      }
    } else {
      for (; panel + kPanels <= block.last_panel; panel += kPanels) {
        rows_of_tiles<P, false, kRows, kPanels>(task, block.first_row, block.last_row, panel, depth, next(panel + kPanels));
      }
      for (; panel < block.last_panel; ++panel) {
        rows_of_tiles<P, false, kRows, 1>(task, block.first_row, block.last_row, panel, depth, {nullptr, 0, 0});
      }
    }
  }
}

// Rows as pairs; one of odd depth ends with a zero.
template <typename N>
void round_rows(const float* x, std::uint16_t* to, std::int64_t rows, std::int64_t depth) {
  using V = typename N::Vector;
  const std::int64_t stride = depth + depth % 2;
  for (std::int64_t row = 0; row < rows; ++row, x += depth, to += stride) {
    for (std::int64_t k = 0; k < stride; k += 2 * V::lanes) {
      const auto rounded = N::narrow(load_some<V>(x + k, depth - k), load_some<V>(x + k + V::lanes, depth - k - V::lanes));
      store_some<V>(reinterpret_cast<float*>(to + k), rounded, (stride - k) / 2);
    }
  }
}

// Rows of x are read one after the other, each into all panels, and the next ones fetched: a row of pixels is far from the next.
template <typename V>
void pack(const float* x, std::int64_t stride, std::int64_t depth, std::int64_t columns, void* to) {
  for (std::int64_t k = 0; k < depth; ++k, x += stride) {
    const std::int64_t ahead = k + kRowsAhead < depth ? kRowsAhead * stride : 0;
    for (std::int64_t column = 0; column < columns; column += kPanelColumns) {
      __builtin_prefetch(x + ahead + column);
      float* const step = static_cast<float*>(to) + (column / kPanelColumns * depth + k) * kPanelColumns;
      for (int i = 0; i < kPanelColumns; i += V::lanes) V::store(step + i, load_some<V>(x + column + i, columns - column - i));
    }
  }
}

// The rows of a pair rounded, and their numbers side by side. The last row of an odd number is paired with zeros.
template <typename N>
void pack_pairs(const float* x, std::int64_t stride, std::int64_t depth, std::int64_t columns, void* to) {
  using V = typename N::Vector;
  const std::int64_t steps = (depth + 1) / 2;
  for (std::int64_t step = 0; step < steps; ++step, x += 2 * stride) {
    const bool both = 2 * step + 1 < depth;
    const std::int64_t ahead = 2 * step + 1 + kRowsAhead < depth ? kRowsAhead * stride : 0;
    for (std::int64_t column = 0; column < columns; column += kPanelColumns) {
      const float* const first = x + column;
      const float* const second = both ? first + stride : first;
      __builtin_prefetch(first + ahead);
      __builtin_prefetch(second + ahead);
      float* const pairs = static_cast<float*>(to) + (column / kPanelColumns * steps + step) * kPanelColumns;
      for (int i = 0; i < kPanelColumns; i += V::lanes) {
        const std::int64_t left = columns - column - i;
        V::store(pairs + i, N::pair(load_some<V>(first + i, left), both ? load_some<V>(second + i, left) : V::broadcast(0.0f)));
      }
    }
  }
}

// The kernel of floats, or of 16-bit weights made floats.
template <typename P, int kRows, int kPanels>
constexpr LinearKernel of_floats() {
  return {linear<P, kRows, kPanels>, nullptr, P::depth == 1 ? pack<typename P::Vector> : nullptr};
}

// That of pairs of 16-bit numbers.
template <typename N, int kRows, int kPanels>
constexpr LinearKernel of_pairs() {
  return {linear<Pairs<N>, kRows, kPanels>, round_rows<N>, pack_pairs<N>};
}

}  // namespace
}  // namespace handheld
