#include "linear_vector.h"

namespace handheld {

const LinearKernels linear_avx512bf16 = {linear<Floats<Avx512Vector>, 6, 4>, linear<Pairs<Avx512Bfloats>, 6, 4>, round_rows<Avx512Bfloats>, 4,
                                       pack<Avx512Vector>, pack_pairs<Avx512Bfloats>};

}  // namespace handheld
