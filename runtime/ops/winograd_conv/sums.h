// The micro-kernel: sums over the input channels of products in transformed space, for the products of any vector.
#pragma once

#include <cstdint>

#include "../bfloat16.h"
#include "../float16.h"
#include "../vector.h"
#include "winograd_conv.h"

namespace handheld {
namespace {

// How many channels and registers of tiles a micro-kernel sums up at once, so that the sums and a row of V fit into the registers.
template <typename V>
struct Blocking;
template <>
struct Blocking<PortableVector> {
  static constexpr int rows = 4, vectors = 1;
};

// Products of floats.
template <typename V>
struct FloatProducts {
  using Vector = V;
  using Register = typename V::Register;
  static constexpr int channels = 1;  // in one place of V
  static Register multiply_add(Register u, Register v, Register sum) { return V::multiply_add(u, v, sum); }
};

// Products of pairs of 16-bit numbers; N is one of ../bfloat16.h or ../float16.h.
template <typename N>
struct PairProducts : N {
  using Narrow = N;
  static constexpr int channels = 2;
};

// One call of the micro-kernel: sums over the depth of products of `panels` panels and some registers of tiles.
struct Sums {
  const float* u;        // [depth][kPanelChannels]
  std::int64_t u_panel;  // from panel to panel
  const float* v;        // [depth][lanes]
  std::int64_t depth;
  int lanes;
  float* m;             // [channels][lanes]
  bool add;             // to what is there
  const float* u_next;  // what will be wanted of U, [depth][kPanelChannels],
  const float* v_next;  // and of V, v_step floats for each index of the depth
  std::int64_t v_step;
};

// Not inlined: what stands around it would take registers from it.
template <typename Products, int panels, int rows, int vectors>
__attribute__((noinline)) void sum_up(const Sums& task) {
  using V = typename Products::Vector;
  using Register = typename V::Register;
  constexpr int count = panels * rows;
  Register sums[count][vectors];
#pragma GCC unroll 16
  for (int row = 0; row < count; ++row) {
#pragma GCC unroll 3
    for (int i = 0; i < vectors; ++i) sums[row][i] = V::broadcast(0.0f);
  }
  const float* u = task.u;
  const float* v = task.v;
  // To have the next operands in the cache in time decides over the speed: what reads them ahead in hardware stops at every page.
  const float* u_next = task.u_next;
  const float* v_next = task.v_next;
  const auto fetch = [&] {
#pragma GCC unroll 2
    for (int panel = 0; panel < panels; ++panel) {
      __builtin_prefetch(u_next + panel * task.u_panel, 0, 2);
      __builtin_prefetch(u_next + panel * task.u_panel + 16, 0, 2);
    }
    __builtin_prefetch(v_next, 0, 2);
    __builtin_prefetch(v_next + 16, 0, 2);
    u_next += 4 * kPanelChannels;
    v_next += 4 * task.v_step;
  };
  if constexpr (requires { requires Products::Narrow::has_own_loop; }) {
    static_assert(panels == 1);  // two are for registers of as many lanes as the smallest block
    const auto columns = [&](std::int64_t step, int i) { return v + step * task.lanes + i * V::lanes; };
    Products::add_products(sums, u, 1, kPanelChannels, columns, task.depth, [&](std::int64_t k) {
      if (k % 4 == 0) fetch();
    });
  } else {
    const auto step = [&] {
      Register values[vectors];
#pragma GCC unroll 3
      for (int i = 0; i < vectors; ++i) values[i] = V::load(v + i * V::lanes);
#pragma GCC unroll 16
      for (int row = 0; row < count; ++row) {
        const Register weight = V::broadcast(u[row / rows * task.u_panel + row % rows]);
#pragma GCC unroll 3
        for (int i = 0; i < vectors; ++i) sums[row][i] = Products::multiply_add(weight, values[i], sums[row][i]);
      }
      u += kPanelChannels;
      v += task.lanes;
    };
    std::int64_t k = 0;
    for (; k + 4 <= task.depth; k += 4) {
      fetch();
      step();
      step();
      step();
      step();
    }
    for (; k < task.depth; ++k) step();
  }
#pragma GCC unroll 16
  for (int row = 0; row < count; ++row) {
    float* m = task.m + (row / rows * kPanelChannels + row % rows) * task.lanes;
#pragma GCC unroll 3
    for (int i = 0; i < vectors; ++i) {
      V::store(m + i * V::lanes, task.add ? V::add(V::load(m + i * V::lanes), sums[row][i]) : sums[row][i]);
    }
  }
}

// All channels of `panels` panels, all tiles of the block.
template <typename Products, int panels>
inline void sum_up_panels(Sums task) {
  using V = typename Products::Vector;
  using Block = Blocking<V>;
  const Sums whole = task;
  for (int at = 0; at < whole.lanes;) {
    const int left = (whole.lanes - at) / V::lanes;
    const int vectors = left == 4 && Block::vectors == 3 ? 2 : left < Block::vectors ? left : Block::vectors;
    for (int row = 0; row < kPanelChannels; row += Block::rows) {
      task.u = whole.u + row;
      task.v = whole.v + at;
      task.m = whole.m + row * whole.lanes + at;
      if constexpr (Block::vectors >= 3) {
        if (vectors == 3) sum_up<Products, panels, Block::rows, 3>(task);
      }
      if constexpr (Block::vectors >= 2) {
        if (vectors == 2) sum_up<Products, panels, Block::rows, 2>(task);
      }
      if (vectors == 1) sum_up<Products, panels, Block::rows, 1>(task);
    }
    at += vectors * V::lanes;
  }
}

}  // namespace
}  // namespace handheld
