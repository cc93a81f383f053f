#include "gelu_vector.h"

namespace handheld {

const GeluKernels gelu_portable = {gelu_array<PortableVector>, quick_gelu_array<PortableVector>, geglu_array<PortableVector>};

}  // namespace handheld
