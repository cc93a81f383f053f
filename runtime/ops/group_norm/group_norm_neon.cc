#include "group_norm_vector.h"

namespace handheld {

void group_norm_neon(const GroupNorm& task, std::int64_t index) { group_norm<NeonVector>(task, index); }

}  // namespace handheld
