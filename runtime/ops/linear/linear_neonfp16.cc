#include "linear_vector.h"

namespace handheld {

constinit const LinearKernels linear_neonfp16 = {
    of_floats<Floats<NeonVector>, 6, 1>(),
    of_floats<WidenedPairs<NeonVector>, 6, 1>(),
    of_pairs<NeonHalves, 6, 1>(),
    1,
};

}  // namespace handheld
