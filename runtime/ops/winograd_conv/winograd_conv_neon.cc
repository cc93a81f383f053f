#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<NeonVector> {
  static constexpr int rows = 8, vectors = 3;  // 24 sums of 32 registers
};

}  // namespace

const WinogradKernel winograd_conv_neon = kernel_of<FloatProducts<NeonVector>>();
const WinogradKernel winograd_conv_float16_neon = kernel_of<PairProducts<EmulatedHalves<NeonVector>>>();

}  // namespace handheld
