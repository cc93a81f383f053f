// Which instruction set the kernels use, chosen at run time.
#pragma once

#include <string>
#include <vector>

namespace handheld {

// kAvx512Bf16 is AVX-512 with products of bfloat16 numbers, kNeonFp16 NEON with arithmetic on float16 numbers, and kNeonBf16 with products
// of bfloat16 numbers beside it; a kernel that has no use for them is the one of kAvx512, or of kNeon.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kNeon, kNeonFp16, kNeonBf16 };

// The name of an instruction set as HANDHELD_ISA takes it: portable, avx2, avx512, avx512bf16, neon, neonfp16, neonbf16.
const char* name_of(Isa isa);

// What this build has kernels for and this machine executes, slowest first. Never empty: portable is always there.
std::vector<Isa> available_isas();

// The fastest available one, or the one that the environment variable HANDHELD_ISA names (for tests and for finding faults).
// Throws std::runtime_error, with a sentence, where that one is not available.
Isa selected_isa();

}  // namespace handheld
