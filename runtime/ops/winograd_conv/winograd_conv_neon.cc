#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<NeonVector> {
  static constexpr int rows = 8, vectors = 3;  // 24 sums of 32 registers
};

}  // namespace

const WinogradKernel winograd_conv_neon = kernel_of<FloatProducts<NeonVector>>();

}  // namespace handheld
