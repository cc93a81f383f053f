#include "attention_vector.h"

namespace handheld {

// 8 x 3 registers of sums, 3 of queries or probabilities, one of a key's or a value's element: 28 of 32
constinit const AttentionKernel flash_attention_neon = flash_attention<Floats<NeonVector>, 8, 3>();
constinit const AttentionKernel partial_softmax_attention_neon = partial_softmax_attention<Floats<NeonVector>, 8, 3>();
constinit const AttentionKernel flash_attention_float16_neon = flash_attention<Pairs<EmulatedHalves<NeonVector>>, 4, 1>();

}  // namespace handheld
