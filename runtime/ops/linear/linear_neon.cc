#include "linear_vector.h"

namespace handheld {

constinit const LinearKernels linear_neon = {
    of_floats<Floats<NeonVector>, 6, 1>(),
    of_floats<WidenedPairs<NeonVector>, 6, 1>(),
    of_pairs<EmulatedHalves<NeonVector>, 2, 1>(),
    1,
};

}  // namespace handheld
