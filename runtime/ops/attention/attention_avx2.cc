#include "attention_vector.h"

namespace handheld {

// 4 x 3 registers of sums, 3 of queries or probabilities, one of a key's or a value's element: 16 of 16
constinit const AttentionKernel flash_attention_avx2 = flash_attention<Floats<Avx2Vector>, 4, 3>();
constinit const AttentionKernel partial_softmax_attention_avx2 = partial_softmax_attention<Floats<Avx2Vector>, 4, 3>();
constinit const AttentionKernel flash_attention_float16_avx2 = flash_attention<Pairs<EmulatedHalves<Avx2Vector>>, 4, 1>();

}  // namespace handheld
