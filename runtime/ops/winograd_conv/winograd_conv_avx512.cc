#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<Avx512Vector> {
  static constexpr int rows = 8, vectors = 3;  // 24 sums of 32 registers: kernels with more spill
};

}  // namespace

const WinogradKernel winograd_conv_avx512 = kernel_of<FloatProducts<Avx512Vector>>();

}  // namespace handheld
