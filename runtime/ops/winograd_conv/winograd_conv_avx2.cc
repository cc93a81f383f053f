#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<Avx2Vector> {
  static constexpr int rows = 4, vectors = 3;  // 12 sums, 3 values and a weight: all 16 registers
};

}  // namespace

const WinogradKernel winograd_conv_avx2 = kernel_of<FloatProducts<Avx2Vector>>();
const WinogradKernel winograd_conv_float16_avx2 = kernel_of<PairProducts<EmulatedHalves<Avx2Vector>>>();

}  // namespace handheld
