#include "winograd_conv_vector.h"

namespace handheld {

const WinogradKernel winograd_conv_portable = kernel_of<FloatProducts<PortableVector>>();

}  // namespace handheld
