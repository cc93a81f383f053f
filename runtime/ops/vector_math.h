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

// v * Phi(v), Phi being the distribution of the normal law, within 3 units in the last place, and v^2 / 3 more where v < 0; 0 at -infinity,
// and not a number where v is none.
//
// It is max(v, 0) - a Phi(-a) with a = |v|: nothing cancels, on either side of 0.
// Phi(-a) = exp(-a^2 / 2) erfcx(a / sqrt 2) / 2, and that last factor is p(a) / q(a) within 6.4e-9 of itself for a in [0, 15], where
// exp has become 0. Both have positive coefficients only, so their sums lose no digits; they are from Lawson's weighted least squares
// for the relative error.
template <typename V>
inline typename V::Register gelu(typename V::Register v) {
  const auto number = [](float value) { return V::broadcast(value); };
  const auto a = V::clamp(V::absolute(v), 0.0f, 15.0f);
  const auto density = exp<V>(V::multiply(V::multiply(a, number(-0.5f)), a));
  auto p = number(0.00415320526f);
  p = V::multiply_add(p, a, number(0.0408809652f));
  p = V::multiply_add(p, a, number(0.18396866f));
  p = V::multiply_add(p, a, number(0.439282791f));
  p = V::multiply_add(p, a, number(0.5f));
  auto q = number(0.0104104301f);
  q = V::multiply_add(q, a, number(0.1024795f));
  q = V::multiply_add(q, a, number(0.471407434f));
  q = V::multiply_add(q, a, number(1.2055463f));
  q = V::multiply_add(q, a, number(1.67645059f));
  q = V::multiply_add(q, a, number(1.0f));
  const auto tail = V::divide(V::multiply(V::multiply(a, density), p), q);
  return V::subtract(V::max(number(0.0f), v), tail);  // max keeps what is not a number
}

}  // namespace
}  // namespace handheld
