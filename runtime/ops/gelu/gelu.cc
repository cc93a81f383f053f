#include "gelu.h"

namespace handheld {

GeluKernels gelu_kernels(Isa isa) {
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2: return gelu_avx2;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: return gelu_avx512;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon:
    case Isa::kNeonFp16:
    case Isa::kNeonBf16: return gelu_neon;
#endif
    default: return gelu_portable;
  }
}

}  // namespace handheld
