// The kernels of gelu.h, written once for any vector of vector.h.
#pragma once

#include "../vector_math.h"
#include "gelu.h"

namespace handheld {
namespace {

// x / (1 + exp(-1.702 x)), with 1.702 as the float that graphs hold
template <typename V>
inline typename V::Register quick_gelu(typename V::Register x) {
  return V::divide(x, V::add(V::broadcast(1.0f), exp<V>(V::multiply(x, V::broadcast(-1.702f)))));
}

// Loads from any number of arrays what `function` takes, a vector at a time.
template <typename V, typename Function, typename... Inputs>
inline void map(float* y, std::int64_t count, Function function, const Inputs*... inputs) {
  std::int64_t at = 0;
  for (; at + V::lanes <= count; at += V::lanes) V::store(y + at, function(V::load(inputs + at)...));
  if (at == count) return;
  const int rest = static_cast<int>(count - at);
  V::store_part(y + at, function(V::load_part(inputs + at, rest, 0.0f)...), rest);
}

template <typename V>
void gelu_array(const float* x, float* y, std::int64_t count) {
  map<V>(y, count, gelu<V>, x);
}

template <typename V>
void quick_gelu_array(const float* x, float* y, std::int64_t count) {
  map<V>(y, count, quick_gelu<V>, x);
}

template <typename V>
void geglu_array(const float* value, const float* gate, float* y, std::int64_t count) {
  const auto gated = [](typename V::Register v, typename V::Register g) { return V::multiply(v, gelu<V>(g)); };
  map<V>(y, count, gated, value, gate);
}

}  // namespace
}  // namespace handheld
