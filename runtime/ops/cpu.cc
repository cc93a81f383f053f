#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

#if defined(HANDHELD_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(HANDHELD_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace handheld {
namespace {

#if defined(HANDHELD_ARM64)
// Whether the CPU has FEAT_BF16: vectors of bfloat16 numbers and products of them.
bool has_bfloat16() {
#if defined(__linux__)  // Android too
  constexpr unsigned long kBfloat16 = 1ul << 14;  // HWCAP2_BF16, which older C libraries don't name
  return (getauxval(AT_HWCAP2) & kBfloat16) != 0;
#elif defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512bf16";
    case Isa::kNeon: return "neon";
    case Isa::kNeonBf16: return "neonbf16";
  }
  return "unknown";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas = {Isa::kPortable};
#if defined(HANDHELD_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(Isa::kAvx2);
  if (__builtin_cpu_supports("avx512f")) isas.push_back(Isa::kAvx512);
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    isas.push_back(Isa::kAvx512Bf16);
  }
#elif defined(HANDHELD_ARM64)
  isas.push_back(Isa::kNeon);  // part of every 64-bit Arm
  if (has_bfloat16()) isas.push_back(Isa::kNeonBf16);
#endif
  return isas;
}

Isa selected_isa() {
  const std::vector<Isa> isas = available_isas();
  const char* forced = std::getenv("HANDHELD_ISA");
  if (forced == nullptr || *forced == '\0') return isas.back();
  std::string names;
  for (const Isa isa : isas) {
    if (name_of(isa) == std::string(forced)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  throw std::runtime_error("HANDHELD_ISA is '" + std::string(forced) + "', and this machine has kernels for: " + names);
}

}  // namespace handheld
