#include "attention_vector.h"

namespace handheld {

constinit const AttentionKernel flash_attention_portable = flash_attention<Floats<PortableVector>, 4, 1>();
constinit const AttentionKernel partial_softmax_attention_portable = partial_softmax_attention<Floats<PortableVector>, 4, 1>();
constinit const AttentionKernel flash_attention_float16_portable = flash_attention<Pairs<EmulatedHalves<PortableVector>>, 4, 1>();

}  // namespace handheld
