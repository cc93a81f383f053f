#include "attention_vector.h"

namespace handheld {

// 8 x 3 registers of sums, 3 of queries or probabilities, one of a key's or a value's pair: 28 of 32
constinit const AttentionKernel flash_attention_neonfp16 = flash_attention<Pairs<NeonHalves>, 8, 3>();

}  // namespace handheld
