#include "linear_vector.h"

namespace handheld {

const LinearKernels linear_avx2 = {linear<Floats<Avx2Vector>, 6, 1>, linear<WidenedPairs<Avx2Vector>, 6, 1>, nullptr, 1,
                                   pack<Avx2Vector>, nullptr};

}  // namespace handheld
