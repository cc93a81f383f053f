#include "gelu_vector.h"

namespace handheld {

const GeluKernels gelu_avx512 = {gelu_array<Avx512Vector>, quick_gelu_array<Avx512Vector>, geglu_array<Avx512Vector>};

}  // namespace handheld
