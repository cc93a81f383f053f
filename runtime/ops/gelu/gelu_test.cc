// Every kernel that this machine runs, against the oracle in double.
#include "gelu.h"

#include <cmath>
#include <limits>

#include "../testing.h"
#include "oracle.h"

using namespace handheld;
using handheld::testing::Expected;
using handheld::testing::normal;

namespace {

constexpr float kUntouched = 12345.0f;
constexpr std::size_t kMargin = 64;

// The range of floats, finely where the functions bend.
std::vector<float> everywhere() {
  std::vector<float> values;
  for (double v = -120; v < 120; v += 0.00390625 + 1e-6) values.push_back(static_cast<float>(v));
  for (double v = -6; v < 6; v += 0.0001220703125 + 1e-8) values.push_back(static_cast<float>(v));
  for (int exponent = -149; exponent <= 127; ++exponent) {
    for (const float mantissa : {1.0f, 1.9999999f}) {
      values.push_back(std::ldexp(mantissa, exponent));
      values.push_back(-values.back());
    }
  }
  values.push_back(0.0f);
  values.push_back(-0.0f);
  return values;
}

// The largest error in units of what is allowed.
template <typename Oracle>
void check(Isa isa, const char* function, const std::vector<float>& x, const std::vector<float>& y, Oracle oracle) {
  double worst = 0, at = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Expected expected = oracle(i);
    const double error = y[i] == expected.y ? 0 : std::abs(y[i] - expected.y) / expected.allowed;
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error, at = x[i];
  }
  HANDHELD_CHECK(worst <= 1, "%s of %s: %.2f times the allowed error, at %.9g", function, name_of(isa), worst, at);
  std::printf("%s of %s: at worst %.2f times the allowed error, at %.9g\n", function, name_of(isa), worst, at);
}

void check_values(Isa isa) {
  const GeluKernels kernels = gelu_kernels(isa);
  const std::vector<float> x = everywhere(), values = normal(x.size(), 0, 3, 1);
  const auto count = static_cast<std::int64_t>(x.size());
  std::vector<float> y(x.size());
  kernels.gelu(x.data(), y.data(), count);
  check(isa, "gelu", x, y, [&](std::size_t i) { return testing::expected_gelu(x[i]); });
  kernels.quick_gelu(x.data(), y.data(), count);
  check(isa, "quick_gelu", x, y, [&](std::size_t i) { return testing::expected_quick_gelu(x[i]); });
  // the largest floats times a large value are beyond the range, in the kernel and in truth
  std::vector<float> gates = x;
  for (float& gate : gates) gate = std::fmin(std::fmax(gate, -1e30f), 1e30f);
  kernels.geglu(values.data(), gates.data(), y.data(), count);
  check(isa, "geglu", gates, y, [&](std::size_t i) { return testing::expected_geglu(values[i], gates[i]); });
}

// Every length around the vectors', from and to addresses that no vector is aligned to; nothing else is written.
void check_lengths(Isa isa) {
  const GeluKernels kernels = gelu_kernels(isa);
  for (std::size_t count = 0; count <= 130; ++count) {
    for (const std::size_t misaligned : {0, 1, 3}) {
      const std::vector<float> x = normal(count + misaligned, 0, 3, 2), values = normal(count + misaligned, 0, 3, 3);
      for (const int function : {0, 1, 2}) {
        std::vector<float> y(count + misaligned + 2 * kMargin, kUntouched);
        float* const first = y.data() + kMargin + misaligned;
        const float *const from = x.data() + misaligned, *const value = values.data() + misaligned;
        const auto size = static_cast<std::int64_t>(count);
        if (function == 0) kernels.gelu(from, first, size);
        if (function == 1) kernels.quick_gelu(from, first, size);
        if (function == 2) kernels.geglu(value, from, first, size);
        for (std::size_t i = 0; i < count; ++i) {
          const Expected expected = function == 0   ? testing::expected_gelu(from[i])
                                    : function == 1 ? testing::expected_quick_gelu(from[i])
                                                    : testing::expected_geglu(value[i], from[i]);
          HANDHELD_CHECK(std::abs(first[i] - expected.y) <= expected.allowed, "%s, function %d, value %d of %d", name_of(isa), function,
                         static_cast<int>(i), static_cast<int>(count));
        }
        for (std::size_t i = 0; i < kMargin; ++i) {
          HANDHELD_CHECK(y[i + misaligned] == kUntouched && first[count + i] == kUntouched, "%s wrote outside of its output", name_of(isa));
        }
      }
    }
  }
}

void check_special_values(Isa isa) {
  const GeluKernels kernels = gelu_kernels(isa);
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {infinity, -infinity, nan, 1.0f}, ones(4, 1.0f), zeros(4, 0.0f);
  std::vector<float> y(4);
  kernels.gelu(x.data(), y.data(), 4);
  HANDHELD_CHECK(y[0] == infinity && y[1] == 0 && std::isnan(y[2]) && y[3] > 0.84f && y[3] < 0.85f, "gelu of %s", name_of(isa));
  kernels.quick_gelu(x.data(), y.data(), 4);
  HANDHELD_CHECK(y[0] == infinity && std::isnan(y[1]) && std::isnan(y[2]) && y[3] > 0.84f && y[3] < 0.85f, "quick_gelu of %s",
                 name_of(isa));
  kernels.geglu(ones.data(), x.data(), y.data(), 4);
  HANDHELD_CHECK(y[0] == infinity && y[1] == 0 && std::isnan(y[2]), "geglu of %s", name_of(isa));
  kernels.geglu(x.data(), zeros.data(), y.data(), 4);
  HANDHELD_CHECK(std::isnan(y[0]) && std::isnan(y[1]) && std::isnan(y[2]) && y[3] == 0, "geglu of %s with infinite values", name_of(isa));
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    check_values(isa);
    check_lengths(isa);
    check_special_values(isa);
  }
  return handheld::testing::report();
}
