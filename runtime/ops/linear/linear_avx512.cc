#include "linear_vector.h"

namespace handheld {

constinit const LinearKernels linear_avx512 = {
    of_floats<Floats<Avx512Vector>, 6, 4>(),
    of_floats<WidenedPairs<Avx512Vector>, 6, 4>(),
    of_pairs<EmulatedHalves<Avx512Vector>, 2, 1>(),
    4,
};

}  // namespace handheld
