#include "gelu_vector.h"

namespace handheld {

const GeluKernels gelu_avx2 = {gelu_array<Avx2Vector>, quick_gelu_array<Avx2Vector>, geglu_array<Avx2Vector>};

}  // namespace handheld
