#include "linear_vector.h"

namespace handheld {

const LinearKernels linear_avx512 = {linear<Floats<Avx512Vector>, 6, 4>, linear<WidenedPairs<Avx512Vector>, 6, 4>, nullptr, 4,
                                     pack<Avx512Vector>, nullptr};

}  // namespace handheld
