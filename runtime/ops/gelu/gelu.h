// The three forms of GELU that diffusion models use: what a kernel takes and what it promises.
//
//   gelu(x)       = x * Phi(x) = x * (1 + erf(x / sqrt 2)) / 2           (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)
//   quick_gelu(x) = x * sigmoid(1.702 x)                                  (the same, section 2; the text encoder of CLIP ViT-L)
//   geglu(v, g)   = v * gelu(g)                                           (Shazeer, "GLU Variants Improve Transformer", 2020, equation 6)
#pragma once

#include <cstdint>

#include "../cpu.h"

namespace handheld {

// Each takes arrays of `count` floats, and y is no part of the others. No memory is allocated, nothing outside the arrays is read or
// written.
//
// Errors against real arithmetic, in units in the last place of the true value (2^-23 of it), before what a denormal number cannot hold:
// gelu 3 + x^2 / 3 where x < 0, and 3 elsewhere; quick_gelu 3 + |x|; geglu one more than gelu of the gate. The usual formula loses
// all digits of gelu below -5.5; this one keeps them, because (1 + erf) is never formed there.
// gelu is +infinity and 0 at +-infinity; quick_gelu is +infinity and, as its equation, not a number; what is not a number stays so.
struct GeluKernels {
  void (*gelu)(const float* x, float* y, std::int64_t count);
  void (*quick_gelu)(const float* x, float* y, std::int64_t count);
  void (*geglu)(const float* value, const float* gate, float* y, std::int64_t count);
};

GeluKernels gelu_kernels(Isa isa);

// One set per instruction set, in gelu_<isa>.cc.
extern const GeluKernels gelu_portable;
extern const GeluKernels gelu_avx2;
extern const GeluKernels gelu_avx512;
extern const GeluKernels gelu_neon;

}  // namespace handheld
