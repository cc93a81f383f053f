// The matrices of F(2x2), F(4x4) and F(6x6): products with B^T and A^T, by vectors.
//
// Toom and Cook's construction on the points 0, +-p for every p of Points, and infinity. With f_i the product over j != i of (p_i - p_j):
//   G[i]   = (1, p_i, p_i^2) / f_i            G[infinity]   = (0, 0, 1)
//   B^T[i] = prod over j != i of (x - p_j)    B^T[infinity] = prod over all j of (x - p_j), each as coefficients of 1, x, x^2, ...
//   A^T[k] = (1 or 0, ..., p_i^k, ..., 1 where k is the last)
// Points that lie symmetrically give rows that share their even and their odd part. p q = 1 keeps the powers of p and q near 1, and so the
// errors small: F(4x4) on sqrt(1/2) and sqrt(2) has half the error of that on the usual 1 and 2.
#pragma once

#include "../vector.h"

namespace handheld {
namespace {

template <int tile>
struct Points;
template <>
struct Points<2> {
  static constexpr double positive[1] = {1};
};
template <>
struct Points<4> {
  static constexpr double positive[2] = {0.70710678118654752, 1.4142135623730951};
};
template <>
struct Points<6> {
  static constexpr double positive[3] = {0.5, 1, 2};
};

// The coefficients of prod of (z - p^2) over all pairs of points but `left_out` (-1: none), of 1, z, z^2, ...
template <int tile>
struct Polynomial {
  double coefficient[tile / 2 + 1] = {1};
  constexpr explicit Polynomial(int left_out) {
    for (int pair = 0, degree = 0; pair < tile / 2; ++pair) {
      if (pair == left_out) continue;
      ++degree;
      const double root = Points<tile>::positive[pair] * Points<tile>::positive[pair];
      for (int i = degree; i >= 0; --i) coefficient[i] = (i > 0 ? coefficient[i - 1] : 0) - root * coefficient[i];
    }
  }
};

constexpr double power(double base, int exponent) { return exponent == 0 ? 1 : base * power(base, exponent - 1); }

// sum of polynomial[i] * d[first + 2 i]; the leading coefficient is 1
template <typename V, int tile, int left_out>
inline typename V::Register evaluate(const typename V::Register* d, int first) {
  constexpr Polynomial<tile> polynomial(left_out);
  constexpr int degree = left_out < 0 ? tile / 2 : tile / 2 - 1;
  auto sum = d[first + 2 * degree];
#pragma GCC unroll 8
  for (int i = 0; i < degree; ++i) {
    sum = V::multiply_add(V::broadcast(static_cast<float>(polynomial.coefficient[i])), d[first + 2 * i], sum);
  }
  return sum;
}

template <typename V, int tile, int pair>
inline void transform_pair(const typename V::Register* d, typename V::Register* w) {
  const auto even = evaluate<V, tile, pair>(d, 2), odd = evaluate<V, tile, pair>(d, 1);
  constexpr float point = static_cast<float>(Points<tile>::positive[pair]);
  w[2 * pair + 1] = V::multiply_add(V::broadcast(point), odd, even);
  w[2 * pair + 2] = V::multiply_add(V::broadcast(-point), odd, even);
}

// w = B^T d, of tile + 2 values
template <typename V, int tile>
inline void transform_input(const typename V::Register* d, typename V::Register* w) {
  w[0] = evaluate<V, tile, -1>(d, 0);
  transform_pair<V, tile, 0>(d, w);
  if constexpr (tile >= 4) transform_pair<V, tile, 1>(d, w);
  if constexpr (tile >= 6) transform_pair<V, tile, 2>(d, w);
  w[tile + 1] = evaluate<V, tile, -1>(d, 1);
}

// y = A^T m, of tile + 2 values
template <typename V, int tile>
inline void transform_output(const typename V::Register* m, typename V::Register* y) {
  constexpr int pairs = tile / 2;
  typename V::Register sum[pairs], difference[pairs];
#pragma GCC unroll 8
  for (int pair = 0; pair < pairs; ++pair) {
    sum[pair] = V::add(m[2 * pair + 1], m[2 * pair + 2]);
    difference[pair] = V::subtract(m[2 * pair + 1], m[2 * pair + 2]);
  }
#pragma GCC unroll 8
  for (int k = 0; k < tile; ++k) {
    const auto* part = k % 2 == 0 ? sum : difference;
    y[k] = k == 0 ? V::add(m[0], part[0]) : V::multiply(V::broadcast(static_cast<float>(power(Points<tile>::positive[0], k))), part[0]);
#pragma GCC unroll 8
    for (int pair = 1; pair < pairs; ++pair) {
      const float factor = static_cast<float>(power(Points<tile>::positive[pair], k));
      y[k] = k == 0 ? V::add(y[k], part[pair]) : V::multiply_add(V::broadcast(factor), part[pair], y[k]);
    }
  }
  y[tile - 1] = V::add(y[tile - 1], m[tile + 1]);
}

}  // namespace
}  // namespace handheld
