#include "linear.h"

namespace handheld {

LinearKernels linear_kernels(Isa isa) {
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2: return linear_avx2;
    case Isa::kAvx512: return linear_avx512;
    case Isa::kAvx512Bf16: return linear_avx512bf16;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon: return linear_neon;
    case Isa::kNeonFp16: return linear_neonfp16;
    case Isa::kNeonBf16: return linear_neonbf16;
#endif
    default: return linear_portable;
  }
}

}  // namespace handheld
