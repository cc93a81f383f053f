#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<NeonVector> {
  static constexpr int rows = 8, vectors = 3;  // 24 sums, 3 registers of tiles, one of a channel's pair: 28 of 32
};

}  // namespace

const WinogradKernel winograd_conv_neonfp16 = kernel_of<PairProducts<NeonHalves>>();

}  // namespace handheld
