#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<NeonVector> {
  static constexpr int rows = 8, vectors = 3;  // 24 sums, 4 registers of two channels each, 3 of tiles: 31 of 32
};

}  // namespace

const WinogradKernel winograd_conv_neonbf16 = kernel_of<PairProducts<NeonBfloats>>();

}  // namespace handheld
