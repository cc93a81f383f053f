// Functions of floats on any vector of vector.h.
#pragma once

#include "vector.h"

namespace handheld {
namespace {

// exp(v) within 1 unit in the last place for v in [-87.3, 88.7], infinity above and 0 (through the denormal numbers) below; v is clamped
// to +-104, and what is not a number becomes exp(-104) = 0.
//
// v = n ln 2 + r with |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 q(r), q of degree 4 by Lawson's weighted least squares for the relative
// error, which is 3.1e-9. ln 2 is taken away in two parts, the first short enough for n times it to be exact.
template <typename V>
inline typename V::Register exp(typename V::Register v) {
  const auto number = [](float value) { return V::broadcast(value); };
  const auto x = V::clamp(v, -104.0f, 104.0f);
  const auto n = V::round(V::multiply(x, number(1.44269504f)));
  auto r = V::multiply_add(n, number(-0.693359375f), x);
  r = V::multiply_add(n, number(2.12194440e-4f), r);
  auto q = number(1.3814613e-3f);
  q = V::multiply_add(q, r, number(8.36871e-3f));
  q = V::multiply_add(q, r, number(4.166839e-2f));
  q = V::multiply_add(q, r, number(1.6666521e-1f));
  q = V::multiply_add(q, r, number(4.9999994e-1f));
  const auto p = V::add(number(1.0f), V::multiply_add(q, V::multiply(r, r), r));
  return V::scale(p, n);
}

// exp(v) for v <= 0, as softmax needs it: 1 at 0, within 2 + |v| units in the last place down to -87.3, 0 (through the denormal numbers)
// below, and not a number where v is none.
//
// exp(v) = 2^n 2^r with v / ln 2 = n + r, |r| <= 1/2: the quotient is rounded, which is the |v|. 2^r = 1 + r q(r), q of degree 4 as in exp,
// with a relative error of 9.2e-8.
template <typename V>
inline typename V::Register exp_below_zero(typename V::Register v) {
  const auto number = [](float value) { return V::broadcast(value); };
  const auto x = V::max(number(-152.0f), V::multiply(v, number(1.44269504f)));
  const auto n = V::round(x), r = V::subtract(x, n);
  auto q = number(1.32647273e-3f);
  q = V::multiply_add(q, r, number(9.67151299e-3f));
  q = V::multiply_add(q, r, number(5.55073358e-2f));
  q = V::multiply_add(q, r, number(2.40222424e-1f));
  q = V::multiply_add(q, r, number(6.93147004e-1f));
  return V::scale(V::multiply_add(q, r, number(1.0f)), n);
}

// v * sigmoid(v) within 2.5 units in the last place for v >= -88.7; below it is -0, where the true value is nearer to 0 than 2.6e-37.
template <typename V>
inline typename V::Register silu(typename V::Register v) {
  return V::divide(v, V::add(V::broadcast(1.0f), exp<V>(V::subtract(V::broadcast(0.0f), v))));
}

}  // namespace
}  // namespace handheld
