#include "linear_vector.h"

namespace handheld {

const LinearKernels linear_neon = {linear<Floats<NeonVector>, 6, 1>, linear<WidenedPairs<NeonVector>, 6, 1>, nullptr, 1,
                                   pack<NeonVector>, nullptr};

}  // namespace handheld
