#include "linear_vector.h"

namespace handheld {

const LinearKernels linear_portable = {linear<Floats<PortableVector>, 2, 1>, linear<WidenedPairs<PortableVector>, 2, 1>, nullptr, 1,
                                       pack<PortableVector>, nullptr};

}  // namespace handheld
