#include "group_norm_vector.h"

namespace handheld {

void group_norm_portable(const GroupNorm& task, std::int64_t index) { group_norm<PortableVector>(task, index); }

}  // namespace handheld
