#include "group_norm.h"

namespace handheld {

GroupNormKernel group_norm_kernel(Isa isa) {
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2: return group_norm_avx2;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: return group_norm_avx512;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon:
    case Isa::kNeonFp16:
    case Isa::kNeonBf16: return group_norm_neon;
#endif
    default: return group_norm_portable;
  }
}

}  // namespace handheld
