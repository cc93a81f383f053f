// Scaled dot-product attention: what the kernels take and what they promise.
//
//   y = softmax(scale * q k' + mask) v       (Vaswani et al., "Attention Is All You Need", 2017, equation 1)
//
// for every image and head. Two kernels compute it:
//
//   flash attention           takes the keys block by block and corrects what it has so far when a larger score comes (Dao et al.,
//                             "FlashAttention", 2022, algorithm 1): scores are never written to memory
//   partial softmax attention writes the scores a of a few queries, reduces each row to its maximum L and the sum S of exp(a - L), and
//                             applies exp(a - L) / S as the product with v loads a (Chen et al., "Speed Is All You Need", 2023,
//                             section 3.2)
#pragma once

#include <cstdint>

#include "../cpu.h"
#include "../operands.h"

namespace handheld {

struct Attention {
  const float* q;     // [batch, queries, heads * dim]
  const float* k;     // [batch, keys, heads * dim]
  const float* v;     // [batch, keys, heads * dim]
  const float* mask;  // added to the scaled scores, element (image, head, query, key) at the strides below; null where there is none
  float* y;           // [batch, queries, heads * dim], no part of the inputs
  std::int64_t batch, heads, queries, keys, dim;
  float scale;
  // in floats, 0 where it is broadcast; the last 0 or 1
  std::int64_t mask_image_stride, mask_head_stride, mask_query_stride, mask_key_stride;
};

// A query whose scores are all masked with -inf (or that has no keys) gets 0. What is not a number goes through to the queries it reaches.
//
// Error against real arithmetic, with u = 2^-23, v the largest |v| of a head and s the largest scale * sum |q| |k| + |mask| of a query,
// where the weight is not 0: at most u v (2 + s), for what was measured up to dim 512 and 4096 keys (at worst 0.6 of it).
//
// A kernel with products of bfloat16 numbers rounds scale * q, k, v and the weights to them, and sums up and takes the softmax in floats.
// Against attention of the rounded operands that was 2^-9 v more at most, for the weights; against that of the operands themselves it is
// about 2^-8 v (1 + s).
//
// One with products of float16 numbers rounds the same to those, and sums some of the products up as such numbers (../float16.h): against
// attention of the rounded operands the error is as above, with u = 2^-11. Scores beyond 65504 are infinite, and what they reach is no
// number.
struct AttentionKernel {
  // Into how many pieces the work falls. They are independent of each other, so the caller deals them out to threads.
  std::int64_t (*pieces)(const Attention& task);
  // How many floats of scratch memory, aligned to 64 bytes, one piece needs while it runs. Flash attention: about 1 MB, or the state of one
  // tile of 48 queries, 400 * dim bytes; partial softmax attention: that of a tile and its scores, 200 * keys bytes.
  std::int64_t (*scratch)(const Attention& task);
  // Computes one piece. No memory is allocated, and nothing outside the arrays is read or written.
  void (*run)(const Attention& task, std::int64_t piece, float* scratch);
};

// `operands`: what those of the products may be. bfloat16 numbers they are where the machine multiplies them, float16 numbers everywhere.
AttentionKernel flash_attention_kernel(Isa isa, Operands operands);
AttentionKernel partial_softmax_attention_kernel(Isa isa);

// One pair per instruction set, in attention_<isa>.cc, and those that multiply 16-bit numbers.
extern const AttentionKernel flash_attention_portable, partial_softmax_attention_portable;
extern const AttentionKernel flash_attention_avx2, partial_softmax_attention_avx2;
extern const AttentionKernel flash_attention_avx512, partial_softmax_attention_avx512;
extern const AttentionKernel flash_attention_neon, partial_softmax_attention_neon;
extern const AttentionKernel flash_attention_avx512bf16, flash_attention_neonbf16;
extern const AttentionKernel flash_attention_float16_portable, flash_attention_float16_avx2, flash_attention_float16_neon;
extern const AttentionKernel flash_attention_neonfp16;

}  // namespace handheld
