// The convolution in double, directly, and the packing of weights, in the plainest way: what the kernels are checked with.
#pragma once

#include <cmath>
#include <vector>

#include "../testing.h"
#include "winograd_conv.h"

namespace handheld::testing {

// The matrices of transforms.h, from the definition and the points, written down once more.
struct Matrices {
  int tile, alpha;
  std::vector<std::vector<double>> g, b, a;  // G [alpha][3], B^T [alpha][alpha], A^T [tile][alpha]

  explicit Matrices(int tile_) : tile(tile_), alpha(tile_ + 2) {
    const std::vector<double> points = tile == 2   ? std::vector<double>{0, 1, -1}
                                       : tile == 4 ? std::vector<double>{0, std::sqrt(0.5), -std::sqrt(0.5), std::sqrt(2), -std::sqrt(2)}
                                                   : std::vector<double>{0, 0.5, -0.5, 1, -1, 2, -2};
    a.assign(static_cast<std::size_t>(tile), {});
    for (int i = 0; i < alpha; ++i) {
      const bool infinite = i == alpha - 1;
      const double p = infinite ? 0 : points[static_cast<std::size_t>(i)];
      double f = 1;
      std::vector<double> polynomial = {1};  // the product of (x - p_j), without the point itself
      for (int j = 0; j < alpha - 1; ++j) {
        if (j == i) continue;
        const double root = points[static_cast<std::size_t>(j)];
        if (!infinite) f *= p - root;
        polynomial.push_back(0);
        for (std::size_t k = polynomial.size(); k-- > 0;) polynomial[k] = (k > 0 ? polynomial[k - 1] : 0) - root * polynomial[k];
      }
      polynomial.resize(static_cast<std::size_t>(alpha));
      b.push_back(polynomial);
      g.push_back(infinite ? std::vector<double>{0, 0, 1} : std::vector<double>{1 / f, p / f, p * p / f});
      for (int k = 0; k < tile; ++k) a[static_cast<std::size_t>(k)].push_back(infinite ? (k == tile - 1 ? 1 : 0) : std::pow(p, k));
    }
  }

  // By how much the transforms enlarge independent errors of the products: the deviation of A^T E A over that of y, where the products
  // U V have independent relative errors and weights and inputs are independent numbers of one size.
  double amplification() const {
    const auto squares = [](const std::vector<double>& row) {
      double sum = 0;
      for (const double value : row) sum += value * value;
      return sum;
    };
    double worst = 0;
    for (const std::vector<double>& row : a) {
      double sum = 0;
      for (std::size_t i = 0; i < row.size(); ++i) sum += row[i] * row[i] * squares(g[i]) * squares(b[i]);
      worst = std::fmax(worst, sum / 3);  // one of two directions; 3: the products of a direct sum
    }
    return worst;
  }
};

// G g G^T for one kernel of 3 x 3: alpha^2 values.
inline std::vector<double> transformed_kernel(const float* kernel, const Matrices& matrices) {
  const auto alpha = static_cast<std::size_t>(matrices.alpha);
  std::vector<double> result(alpha * alpha);
  for (std::size_t i = 0; i < alpha * alpha; ++i) {
    for (std::size_t r = 0; r < 9; ++r) {
      result[i] += matrices.g[i / alpha][r / 3] * static_cast<double>(kernel[r]) * matrices.g[i % alpha][r % 3];
    }
  }
  return result;
}

// Packed weights as winograd_conv.h lays them out. g: [channels_out, channels_in, 3, 3]
struct Packed {
  std::vector<float> floats;
  std::vector<std::uint16_t> halves;
  const void* data() const { return halves.empty() ? static_cast<const void*>(floats.data()) : halves.data(); }
};

inline Packed pack(const std::vector<float>& g, std::int64_t channels_out, std::int64_t channels_in, int tile, Operands operands) {
  const std::int64_t panels = (channels_out + 7) / 8, planes = (tile + 2) * (tile + 2), pairs = (channels_in + 1) / 2;
  const Matrices matrices(tile);
  Packed packed;
  const bool narrow = operands != Operands::kFloat32;
  if (narrow) {
    packed.halves.assign(static_cast<std::size_t>(panels * planes * pairs * 16), 0);
  } else {
    packed.floats.assign(static_cast<std::size_t>(panels * planes * channels_in * 8), 0);
  }
  for (std::int64_t o = 0; o < channels_out; ++o) {
    for (std::int64_t c = 0; c < channels_in; ++c) {
      const std::vector<double> u = transformed_kernel(g.data() + (o * channels_in + c) * 9, matrices);
      for (std::int64_t xi = 0; xi < planes; ++xi) {
        const float value = static_cast<float>(u[static_cast<std::size_t>(xi)]);
        const std::int64_t plane = o / 8 * planes + xi;
        if (narrow) {
          packed.halves[static_cast<std::size_t>(((plane * pairs + c / 2) * 8 + o % 8) * 2 + c % 2)] = bits_of(value, operands);
        } else {
          packed.floats[static_cast<std::size_t>((plane * channels_in + c) * 8 + o % 8)] = value;
        }
      }
    }
  }
  return packed;
}

// What y is at one place.
inline double expected_at(const WinogradConv& task, const std::vector<float>& g, std::int64_t image, std::int64_t o, std::int64_t row,
                          std::int64_t column) {
  double sum = task.bias == nullptr ? 0 : static_cast<double>(task.bias[o]);
  if (task.residual != nullptr) {
    sum += static_cast<double>(task.residual[((image * task.channels_out + o) * task.height + row) * task.width + column]);
  }
  for (std::int64_t c = 0; c < task.channels_in; ++c) {
    const float* x = task.x + (image * task.channels_in + c) * task.height * task.width;
    const float* kernel = g.data() + (o * task.channels_in + c) * 9;
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t s = 0; s < 3; ++s) {
        const std::int64_t at_row = row + r - 1, at_column = column + s - 1;
        if (at_row < 0 || at_row >= task.height || at_column < 0 || at_column >= task.width) continue;
        sum += static_cast<double>(kernel[r * 3 + s]) * static_cast<double>(x[at_row * task.width + at_column]);
      }
    }
  }
  return task.silu ? sum / (1 + std::exp(-sum)) : sum;
}

}  // namespace handheld::testing
