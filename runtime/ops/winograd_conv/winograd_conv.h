// Winograd convolution: what it takes, how its weights are packed, and what it promises.
//
//   y = conv3x3(x) + bias + residual, stride 1, one row and column of zeros around x; then y * sigmoid(y) where `silu` is set
//
// by F(m x m, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015): with alpha = m + 2, every tile of m x m
// outputs is A^T [sum over the input channels of (G g G^T) * (B^T d B)] A, d being alpha x alpha values of x. The points and the matrices
// are in transforms.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "../cpu.h"
#include "../operands.h"

namespace handheld {

constexpr int kPanelChannels = 8;  // output channels that lie side by side in the packed weights

struct WinogradConv {
  const float* x;  // [batch, channels_in, height, width]
  // G g G^T of every pair of channels, xi = row * alpha + column, in panels of 8 output channels; what is beyond the channels is 0:
  //   float     [ceil(channels_out / 8), alpha^2, channels_in, 8]
  //   bfloat16 or float16  [ceil(channels_out / 8), alpha^2, ceil(channels_in / 2), 8, 2], the input channels in pairs
  const void* u;
  Operands operands;      // what the weights are, and what the transformed input may be rounded to
  const float* bias;      // [channels_out], or null
  const float* residual;  // the shape of y, no part of y; or null
  float* y;               // [batch, channels_out, height, width], no part of x
  std::int64_t batch;
  std::int64_t channels_in;
  std::int64_t channels_out;
  std::int64_t height;
  std::int64_t width;
  int tile;  // m: 2, 4 or 6
  bool silu;
};

// Calls task(index) for every index below `count`, on any threads and in any order, and returns when all have returned.
using Parallel = std::function<void(std::int64_t count, const std::function<void(std::int64_t index)>& task)>;

// How many bytes winograd_conv needs beside its arrays where `threads` threads call its tasks at the same time.
std::size_t winograd_conv_scratch(const WinogradConv& task, Isa isa, int threads);

// Convolves. `scratch` is aligned to 64 bytes and as large as winograd_conv_scratch says for these arguments; where more than `threads`
// threads come, some wait. Reads and writes nothing outside of the arrays and `scratch`; calls that share neither y nor `scratch` may run
// at the same time.
//
// Error: what is rounded is numbers in transformed space. Measured against double, as root mean squares relative to y's, for weights and
// inputs without structure: F(2x2) 6e-7, F(4x4) 2e-6, F(6x6) 7e-6; with bfloat16 weights F(2x2) 4e-3, F(4x4) 1.3e-2. kAvx512Bf16
// and kNeonBf16 round the transformed input to bfloat16 too; the others take such weights as floats. With float16 weights, whose products
// are those of ../float16.h on all of them: F(2x2) 1.2e-3, F(4x4) 3.6e-3; and infinite where a transformed number exceeds 65504.
void winograd_conv(const WinogradConv& task, Isa isa, int threads, void* scratch, const Parallel& parallel);

}  // namespace handheld
