#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

namespace handheld {

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512bf16";
    case Isa::kNeon: return "neon";
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
