#include "linear_vector.h"

namespace handheld {

constinit const LinearKernels linear_portable = {
    of_floats<Floats<PortableVector>, 2, 1>(),
    of_floats<WidenedPairs<PortableVector>, 2, 1>(),
    of_pairs<EmulatedHalves<PortableVector>, 2, 1>(),
    1,
};

}  // namespace handheld
