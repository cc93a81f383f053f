#include "gelu_vector.h"

namespace handheld {

const GeluKernels gelu_neon = {gelu_array<NeonVector>, quick_gelu_array<NeonVector>, geglu_array<NeonVector>};

}  // namespace handheld
