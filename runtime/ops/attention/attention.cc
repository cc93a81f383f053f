#include "attention.h"

namespace handheld {

namespace {

AttentionKernel flash_attention_float16_kernel(Isa isa) {
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2:
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: return flash_attention_float16_avx2;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon: return flash_attention_float16_neon;
    case Isa::kNeonFp16:
    case Isa::kNeonBf16: return flash_attention_neonfp16;
#endif
    default: return flash_attention_float16_portable;
  }
}

}  // namespace

AttentionKernel flash_attention_kernel(Isa isa, Operands operands) {
  if (operands == Operands::kFloat16) return flash_attention_float16_kernel(isa);
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2: return flash_attention_avx2;
    case Isa::kAvx512: return flash_attention_avx512;
    case Isa::kAvx512Bf16: return operands == Operands::kBfloat16 ? flash_attention_avx512bf16 : flash_attention_avx512;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon:
    case Isa::kNeonFp16: return flash_attention_neon;
    case Isa::kNeonBf16: return operands == Operands::kBfloat16 ? flash_attention_neonbf16 : flash_attention_neon;
#endif
    default: return flash_attention_portable;
  }
}

AttentionKernel partial_softmax_attention_kernel(Isa isa) {
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2: return partial_softmax_attention_avx2;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: return partial_softmax_attention_avx512;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon:
    case Isa::kNeonFp16:
    case Isa::kNeonBf16: return partial_softmax_attention_neon;
#endif
    default: return partial_softmax_attention_portable;
  }
}

}  // namespace handheld
