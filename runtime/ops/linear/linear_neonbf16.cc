#include "linear_vector.h"

namespace handheld {

const LinearKernels linear_neonbf16 = {linear<Floats<NeonVector>, 6, 1>, linear<Pairs<NeonBfloats>, 6, 1>, round_rows<NeonBfloats>, 1,
                                       pack<NeonVector>, pack_pairs<NeonBfloats>};

}  // namespace handheld
