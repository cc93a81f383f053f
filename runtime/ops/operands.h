// What a caller may have the operands of products rounded to; they are summed up as floats in the end, whatever they are.
#pragma once

namespace handheld {

enum class Operands { kFloat32, kBfloat16, kFloat16 };

// As the attribute `operands` of an operator has it.
inline const char* name_of(Operands operands) {
  return operands == Operands::kFloat32 ? "float32" : operands == Operands::kBfloat16 ? "bfloat16" : "float16";
}

}  // namespace handheld
