// The pieces of blocks.h, written once for any vector of vector.h.
//
// Both transforms go along whole rows first, without regard to tiles, and only what that leaves is taken apart into lanes.
#pragma once

#include <cstdint>

#include "../vector_math.h"
#include "blocks.h"
#include "interleave.h"
#include "sums.h"
#include "transforms.h"

namespace handheld {
namespace {

// Input channels that are summed up in registers before the sum is added to others: sums of sums round less than one long sum.
constexpr std::int64_t kChainedProducts = 320;

// Tiles that follow each other in a row of tiles.
struct Run {
  std::int64_t image, row, column;  // of the first tile, in tiles
  int lane, tiles;
};

struct Runs {
  Run run[kBlockLanes];
  int count;
};

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline Runs runs_of(const WinogradConv& task, const TileBlock& block) {
  const std::int64_t columns = divide_up(task.width, task.tile), rows = divide_up(task.height, task.tile);
  Runs runs;
  runs.count = 0;
  for (int lane = 0; lane < block.tiles;) {
    const std::int64_t tile = block.first + lane, row = tile / columns, column = tile % columns;
    const int tiles = static_cast<int>(columns - column < block.tiles - lane ? columns - column : block.tiles - lane);
    runs.run[runs.count++] = {row / rows, row % rows, column, lane, tiles};
    lane += tiles;
  }
  return runs;
}

template <int tile>
constexpr int kRowFloats = kBlockLanes * tile + 32;  // a row of pixels of a block, and what vectors read and write behind it

// B^T d of the columns [left, left + count) of alpha rows of pixels from `top` on: rows of kRowFloats floats. There are zeros around
// the picture. `ahead`: how far the pixels are that will be wanted next, or 0.
template <typename V, int tile>
inline void transform_columns(const WinogradConv& task, const float* x, std::int64_t top, std::int64_t left, int count,
                              std::int64_t ahead, float* to) {
  using Register = typename V::Register;
  constexpr int alpha = tile + 2;
  static const float zeros[kRowFloats<tile>] = {};
  if (left < 0) {
    for (int i = 0; i < alpha; ++i) to[i * kRowFloats<tile>] = 0;
    ++to;
    ++left;
    --count;
  }
  const std::int64_t there = task.width - left < count ? task.width - left : count;  // the others are right of the picture
  const float* row[alpha];
  std::int64_t next[alpha];
  for (int i = 0; i < alpha; ++i) {
    const bool inside = top + i >= 0 && top + i < task.height && there > 0;
    row[i] = inside ? x + (top + i) * task.width + left : zeros;
    next[i] = inside ? ahead : 0;
  }
  Register d[alpha], w[alpha];
  std::int64_t at = 0;
  const auto transform = [&] {
    transform_input<V, tile>(d, w);
#pragma GCC unroll 8
    for (int i = 0; i < alpha; ++i) V::store(to + i * kRowFloats<tile> + at, w[i]);
  };
  for (; at + V::lanes <= there; at += V::lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < alpha; ++i) {
      d[i] = V::load(row[i] + at);
      if (ahead != 0) __builtin_prefetch(row[i] + at + next[i]);
    }
    transform();
  }
  for (; at < count; at += V::lanes) {
    const int part = static_cast<int>(at < there ? there - at : 0);
#pragma GCC unroll 8
    for (int i = 0; i < alpha; ++i) d[i] = V::load_part(row[i] + (part > 0 ? at : 0), part, 0.0f);
    transform();
  }
}

// The pixels of a block in tiles, transformed along the columns: lane t of column c is main[i][t * tile + c] for c < tile, and
// rest[i][t * tile + c - tile] for the two columns that are also the next tile's.
template <int tile>
struct Stage {
  alignas(64) float main[(tile + 2) * kRowFloats<tile>];
  alignas(64) float beside[(tile + 2) * kRowFloats<tile>];
  const float* rest;
};

template <typename V, int tile>
inline void fill(const WinogradConv& task, const Runs& runs, std::int64_t channel, int channels, Stage<tile>& stage) {
  const std::int64_t positions = task.height * task.width;
  const bool single = runs.count == 1;
  // small pictures come fast enough, their channels being next to each other
  const std::int64_t ahead = single && channel + channels < task.channels_in ? channels * positions : 0;
  stage.rest = single ? stage.main + tile : stage.beside;
  for (int i = 0; i < runs.count; ++i) {
    const Run& run = runs.run[i];
    const float* x = task.x + (run.image * task.channels_in + channel) * positions;
    const std::int64_t top = run.row * tile - 1, left = run.column * tile - 1;
    const int count = run.tiles * tile, at = run.lane * tile;
    transform_columns<V, tile>(task, x, top, left, single ? count + 2 : count, ahead, stage.main + at);
    if (!single) transform_columns<V, tile>(task, x, top, left + tile, count, 0, stage.beside + at);
  }
}

template <typename V, int tile>
inline void transform_rows(const Stage<tile>& stage, int i, int lane, typename V::Register* w) {
  constexpr int alpha = tile + 2;
  typename V::Register d[alpha], rest[tile];
  const int at = i * kRowFloats<tile> + lane * tile;
  load_parted<V, tile>(stage.main + at, d);
  load_parted<V, tile>(stage.rest + at, rest);
  d[tile] = rest[0];
  d[tile + 1] = rest[1];
  transform_input<V, tile>(d, w);
}

template <typename Products, int tile>
inline void transform_block(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, float* v) {
  using V = typename Products::Vector;
  using Register = typename V::Register;
  constexpr int alpha = tile + 2, channels = Products::channels;
  const std::int64_t depth = divide_up(task.channels_in, channels), plane = depth * block.lanes + kPlaneGap;
  const Runs runs = runs_of(task, block);
  Stage<tile> stage[channels] = {};
  for (std::int64_t k = begin; k < end; ++k) {
    const bool half = (k + 1) * channels > task.channels_in;  // the last of an odd number
    for (int c = 0; c < channels - half; ++c) fill<V, tile>(task, runs, k * channels + c, channels, stage[c]);
    for (int i = 0; i < alpha; ++i) {
      for (int lane = 0; lane < block.lanes; lane += V::lanes) {
        Register w[channels][alpha];
        transform_rows<V, tile>(stage[0], i, lane, w[0]);
        if constexpr (channels == 2) {
          if (half) {
            for (Register& each : w[1]) each = V::broadcast(0.0f);
          } else {
            transform_rows<V, tile>(stage[1], i, lane, w[1]);
          }
        }
        float* to = v + i * alpha * plane + k * block.lanes + lane;
#pragma GCC unroll 8
        for (int j = 0; j < alpha; ++j) {
          __builtin_prefetch(to + j * plane + block.lanes, 1);  // where the next ones go: stores wait for each other
          if constexpr (channels == 2) {
            V::store(to + j * plane, Products::pair(w[0][j], w[1][j]));
          } else {
            V::store(to + j * plane, w[0][j]);
          }
        }
      }
    }
  }
}

// bfloat16 to float: pairs [depth / 2][8][2] become [depth][8].
inline void widen(const std::uint16_t* from, std::int64_t depth, float* to) {
  for (std::int64_t k = 0; k < depth; ++k) {
    for (int i = 0; i < kPanelChannels; ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(from[(k / 2 * kPanelChannels + i) * 2 + k % 2]) << 16;
      std::memcpy(to + k * kPanelChannels + i, &bits, sizeof(bits));
    }
  }
}

// M of the panels [begin, end)
template <typename Products, int tile>
inline void multiply_planes(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, const float* v,
                            float* m) {
  constexpr std::int64_t planes = (tile + 2) * (tile + 2), chain = kChainedProducts / Products::channels;
  const std::int64_t depth = divide_up(task.channels_in, Products::channels);
  const std::int64_t v_plane = depth * block.lanes + kPlaneGap, m_plane = (end - begin) * kPanelChannels * block.lanes + kPlaneGap;
  const bool widened = task.operands != Operands::kFloat32 && Products::channels == 1;
  const std::int64_t pairs = divide_up(task.channels_in, 2);
  alignas(64) float wide[kChainedProducts * kPanelChannels];
  const float* u = static_cast<const float*>(task.u);
  const std::int64_t u_panel = planes * depth * kPanelChannels;
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    for (std::int64_t first = 0; first < depth; first += chain) {
      Sums sums;
      sums.depth = depth - first < chain ? depth - first : chain;
      sums.lanes = block.lanes;
      sums.add = first > 0;
      sums.v = v + plane * v_plane + first * block.lanes;
      sums.u_panel = u_panel;
      sums.v_step = block.lanes / (end - begin);
      const std::int64_t next_plane = plane + 1 < planes ? plane + 1 : plane;
      for (std::int64_t panel = begin; panel < end;) {
        sums.m = m + plane * m_plane + (panel - begin) * kPanelChannels * block.lanes;
        sums.v_next = v + next_plane * v_plane + first * block.lanes + (panel - begin) * sums.depth * sums.v_step;
        if (widened) {
          const std::uint16_t* narrow =
              static_cast<const std::uint16_t*>(task.u) + ((panel * planes + plane) * pairs + first / 2) * 2 * kPanelChannels;
          widen(narrow, sums.depth, wide);
          sums.u = sums.u_next = wide;
          sum_up_panels<Products, 1>(sums);
          ++panel;
          continue;
        }
        constexpr bool any_two = Products::Vector::lanes == kUnitLanes && Blocking<typename Products::Vector>::rows == kPanelChannels;
        const bool two = any_two && block.lanes == kUnitLanes && panel + 2 <= end;
        sums.u = u + panel * u_panel + (plane * depth + first) * kPanelChannels;
        const std::int64_t next_panel = panel + (two ? 2 : 1);
        sums.u_next = next_panel < end ? sums.u + (next_panel - panel) * u_panel
                                       : u + begin * u_panel + (next_plane * depth + first) * kPanelChannels;
        if (two) {
          if constexpr (any_two) sum_up_panels<Products, 2>(sums);
        } else {
          sum_up_panels<Products, 1>(sums);
        }
        panel = next_panel;
      }
    }
  }
}

// y = products + bias + residual, with SiLU where wanted, of `count` pixels of a row
template <typename V, bool silu_>
inline void finish_row(const float* products, const float* residual, float bias, bool stream, int count, float* y) {
  using Register = typename V::Register;
  const Register addend = V::broadcast(bias);
  const auto finish = [&](Register value, Register other) {
    const Register sum = V::add(V::add(value, addend), other);
    if constexpr (silu_) return silu<V>(sum);
    return sum;
  };
  const Register zero = V::broadcast(0.0f);
  const bool aligned = stream && reinterpret_cast<std::uintptr_t>(y) % (V::lanes * sizeof(float)) == 0;
  int at = 0;
  for (; at + V::lanes <= count; at += V::lanes) {
    const Register value = finish(V::load(products + at), residual == nullptr ? zero : V::load(residual + at));
    if (aligned) {
      V::stream(y + at, value);
    } else {
      V::store(y + at, value);
    }
  }
  if (at < count) {
    const int part = count - at;
    V::store_part(y + at,
                  finish(V::load_part(products + at, part, 0.0f), residual == nullptr ? zero : V::load_part(residual + at, part, 0.0f)),
                  part);
  }
}

// A^T m A of one channel: rows of kRowFloats pixels, tile after tile
template <typename V, int tile>
__attribute__((noinline)) void transform_products(const float* m, std::int64_t plane, int lanes, float* rows) {
  using Register = typename V::Register;
  constexpr int alpha = tile + 2;
  for (int lane = 0; lane < lanes; lane += V::lanes) {
    Register half[tile][alpha];
#pragma GCC unroll 8
    for (int j = 0; j < alpha; ++j) {
      Register column[alpha], transformed[tile];
#pragma GCC unroll 8
      for (int i = 0; i < alpha; ++i) column[i] = V::load(m + (i * alpha + j) * plane + lane);
      transform_output<V, tile>(column, transformed);
#pragma GCC unroll 8
      for (int i = 0; i < tile; ++i) half[i][j] = transformed[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < tile; ++i) {
      Register y[tile];
      transform_output<V, tile>(half[i], y);
      store_mixed<V, tile>(rows + i * kRowFloats<tile> + lane * tile, y);
    }
  }
}

// An output of this size does not stay in a cache until the next operator reads it.
constexpr std::int64_t kStreamBytes = 16 << 20;

template <typename Products, int tile>
inline void multiply_block(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, const float* v,
                           float* m) {
  using V = typename Products::Vector;
  multiply_planes<Products, tile>(task, block, begin, end, v, m);
  const Runs runs = runs_of(task, block);
  const std::int64_t plane = (end - begin) * kPanelChannels * block.lanes + kPlaneGap, positions = task.height * task.width;
  const bool stream = task.batch * task.channels_out * positions * static_cast<std::int64_t>(sizeof(float)) >= kStreamBytes;
  const std::int64_t last = end * kPanelChannels < task.channels_out ? end * kPanelChannels : task.channels_out;
  alignas(64) float rows[tile * kRowFloats<tile>];
  for (std::int64_t channel = begin * kPanelChannels; channel < last; ++channel) {
    transform_products<V, tile>(m + (channel - begin * kPanelChannels) * block.lanes, plane, block.lanes, rows);
    const float bias = task.bias == nullptr ? 0.0f : task.bias[channel];
    for (int i = 0; i < runs.count; ++i) {
      const Run& run = runs.run[i];
      const std::int64_t top = run.row * tile, left = run.column * tile;
      const int count = static_cast<int>(task.width - left < run.tiles * tile ? task.width - left : run.tiles * tile);
      for (int row = 0; row < tile && top + row < task.height; ++row) {
        const std::int64_t at = (run.image * task.channels_out + channel) * positions + (top + row) * task.width + left;
        const float* products = rows + row * kRowFloats<tile> + run.lane * tile;
        const float* residual = task.residual == nullptr ? nullptr : task.residual + at;
        if (task.silu) {
          finish_row<V, true>(products, residual, bias, stream, count, task.y + at);
        } else {
          finish_row<V, false>(products, residual, bias, stream, count, task.y + at);
        }
      }
    }
  }
  if (stream) V::finish_streaming();
}

template <typename Products>
void transform(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, float* v) {
  switch (task.tile) {
    case 2: return transform_block<Products, 2>(task, block, begin, end, v);
    case 4: return transform_block<Products, 4>(task, block, begin, end, v);
    default: return transform_block<Products, 6>(task, block, begin, end, v);
  }
}

template <typename Products>
void multiply(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, const float* v, float* m) {
  switch (task.tile) {
    case 2: return multiply_block<Products, 2>(task, block, begin, end, v, m);
    case 4: return multiply_block<Products, 4>(task, block, begin, end, v, m);
    default: return multiply_block<Products, 6>(task, block, begin, end, v, m);
  }
}

template <typename Products>
constexpr WinogradKernel kernel_of() {
  return {Products::channels == 2, transform<Products>, multiply<Products>};
}

}  // namespace
}  // namespace handheld
