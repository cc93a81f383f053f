#include "attention_vector.h"

namespace handheld {

// 8 x 3 registers of sums, 4 of two keys or values each, 3 of queries or probabilities: 31 of 32
constinit const AttentionKernel flash_attention_neonbf16 = flash_attention<Pairs<NeonBfloats>, 8, 3>();

}  // namespace handheld
