#include "linear_vector.h"

namespace handheld {

constinit const LinearKernels linear_avx2 = {
    of_floats<Floats<Avx2Vector>, 6, 1>(),
    of_floats<WidenedPairs<Avx2Vector>, 6, 1>(),
    of_pairs<EmulatedHalves<Avx2Vector>, 2, 1>(),
    1,
};

}  // namespace handheld
