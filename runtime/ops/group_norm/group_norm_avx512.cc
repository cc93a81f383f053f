#include "group_norm_vector.h"

namespace handheld {

void group_norm_avx512(const GroupNorm& task, std::int64_t index) { group_norm<Avx512Vector>(task, index); }

}  // namespace handheld
