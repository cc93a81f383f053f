// The two halves of the work, as every instruction set implements them: pieces of any size that need nothing of each other.
//
// The tiles of all images are numbered row by row, and tiles are the lanes of vectors: a block is up to 48 tiles that follow each other.
//   transformed input  V of a block: [alpha^2 planes][depth][lanes of the block], 64 bytes between planes
//   products           M of some panels of a block: [alpha^2 planes][channels][lanes of the block], 64 bytes between planes
// The bytes between planes keep planes from starting in the same set of a cache. Depth is the number of input channels, or of their pairs
// where products are of pairs of 16-bit numbers.
#pragma once

#include <cstdint>

#include "winograd_conv.h"

namespace handheld {

constexpr int kUnitLanes = 16;   // the lanes of a block are a multiple of this
constexpr int kBlockLanes = 48;  // and at most this: three registers of AVX-512 times 8 channels are as many sums as fit in registers
constexpr int kPlaneGap = 16;    // floats

struct TileBlock {
  std::int64_t first;  // tile
  int tiles;
  int lanes;
};

struct WinogradKernel {
  bool pairs;  // V holds pairs of 16-bit numbers, a pair in the place of a float
  // V of the depth indices in [begin, end)
  void (*transform)(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, float* v);
  // y of the output channels of the panels in [begin, end); m holds M of as many panels
  void (*multiply)(const WinogradConv& task, const TileBlock& block, std::int64_t begin, std::int64_t end, const float* v, float* m);
};

// One per instruction set, in winograd_conv_<isa>.cc; then those for bfloat16 weights only, and for float16 weights only.
extern const WinogradKernel winograd_conv_portable, winograd_conv_avx2, winograd_conv_avx512, winograd_conv_neon;
extern const WinogradKernel winograd_conv_avx512bf16, winograd_conv_neonbf16;
extern const WinogradKernel winograd_conv_float16_portable, winograd_conv_float16_avx2, winograd_conv_float16_neon, winograd_conv_neonfp16;

}  // namespace handheld
