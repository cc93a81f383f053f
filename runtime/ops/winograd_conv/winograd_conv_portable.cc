#include "winograd_conv_vector.h"

namespace handheld {

const WinogradKernel winograd_conv_portable = kernel_of<FloatProducts<PortableVector>>();
const WinogradKernel winograd_conv_float16_portable = kernel_of<PairProducts<EmulatedHalves<PortableVector>>>();

}  // namespace handheld
