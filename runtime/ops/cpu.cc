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
struct Features {
  bool float16;   // FEAT_FP16: arithmetic on vectors of float16 numbers
  bool bfloat16;  // FEAT_BF16: products of bfloat16 numbers
};

Features features() {
#if defined(__linux__)  // Android too
  constexpr unsigned long kFloat16 = 1ul << 10, kBfloat16 = 1ul << 14;  // HWCAP_ASIMDHP, HWCAP2_BF16: older C libraries don't name them
  return {(getauxval(AT_HWCAP) & kFloat16) != 0, (getauxval(AT_HWCAP2) & kBfloat16) != 0};
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    std::size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  return {has("hw.optional.arm.FEAT_FP16"), has("hw.optional.arm.FEAT_BF16")};
#else
  return {false, false};
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
    case Isa::kNeonFp16: return "neonfp16";
    case Isa::kNeonBf16: return "neonbf16";
  }
  return "unknown";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas = {Isa::kPortable};
#if defined(HANDHELD_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) isas.push_back(Isa::kAvx2);
  if (__builtin_cpu_supports("avx512f")) isas.push_back(Isa::kAvx512);
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    isas.push_back(Isa::kAvx512Bf16);
  }
#elif defined(HANDHELD_ARM64)
  isas.push_back(Isa::kNeon);  // part of every 64-bit Arm
  const Features has = features();
  if (has.float16) isas.push_back(Isa::kNeonFp16);
  if (has.float16 && has.bfloat16) isas.push_back(Isa::kNeonBf16);
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
