#include "winograd_conv_vector.h"

namespace handheld {
namespace {

template <>
struct Blocking<Avx512Vector> {
  static constexpr int rows = 8, vectors = 3;
};

}  // namespace

const WinogradKernel winograd_conv_avx512bf16 = kernel_of<PairProducts<Avx512Bfloats>>();

}  // namespace handheld
