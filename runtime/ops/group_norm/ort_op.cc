// handheld.GroupNorm and handheld.GroupNormSilu as ONNX Runtime's operators: checks what it is given and deals the groups to threads.
#include "../ort_kernel.h"

#include <cmath>

#include "../ops.h"
#include "group_norm.h"

namespace handheld {
namespace {

// An output of this size does not stay in a cache until the next operator reads it.
constexpr std::int64_t kStreamBytes = 32 << 20;
// Below this many values it takes longer to wake threads than to do the work.
constexpr std::int64_t kSerialValues = 1 << 14;

struct Op;

class Kernel {
 public:
  Kernel(const OrtKernelInfo* raw, const Op& op);

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue x = context.GetInput(0), scale = context.GetInput(1), bias = context.GetInput(2);
    const std::vector<std::int64_t> shape = x.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() < 2) refuse(name_ + ": the input has shape " + text_of(shape) + ", and must be [batch, channels, ...]");
    const std::int64_t channels = shape[1];
    if (channels % groups_ != 0) {
      refuse(name_ + ": " + std::to_string(channels) + " channels are no multiple of " + std::to_string(groups_) + " groups");
    }
    check_per_channel(scale, "scale", channels);
    check_per_channel(bias, "bias", channels);
    std::int64_t positions = 1;
    for (std::size_t i = 2; i < shape.size(); ++i) positions *= shape[i];

    Ort::UnownedValue y = Ort::KernelContext(context).GetOutput(0, shape);
    const std::int64_t values = shape[0] * channels * positions;
    if (values == 0) return;
    const bool stream = values * static_cast<std::int64_t>(sizeof(float)) >= kStreamBytes;
    const GroupNorm task{x.GetTensorData<float>(), scale.GetTensorData<float>(), bias.GetTensorData<float>(),
                         y.GetTensorMutableData<float>(), channels, positions, groups_, epsilon_, silu_, stream};
    const std::int64_t count = shape[0] * groups_;
    const auto one = [&](std::int64_t index) { normalize_(task, index); };
    if (values < kSerialValues) {
      for (std::int64_t index = 0; index < count; ++index) one(index);
    } else {
      parallel_for(context, count, one);
    }
  }

 private:
  void check_per_channel(const Ort::ConstValue& value, const char* what, std::int64_t channels) const {
    const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape != std::vector<std::int64_t>{channels}) {
      refuse(name_ + ": the " + what + " has shape " + text_of(shape) + ", and the input has " + std::to_string(channels) + " channels");
    }
  }

  std::string name_;
  bool silu_;
  GroupNormKernel normalize_;
  float epsilon_;
  std::int64_t groups_;
};

struct Op : Operator<Op, Kernel> {
  Op(const char* name, bool with_silu) : Operator(name), silu(with_silu) {}
  std::size_t GetInputTypeCount() const { return 3; }

  const bool silu;
};

Kernel::Kernel(const OrtKernelInfo* raw, const Op& op)
    : name_(op.GetName()), silu_(op.silu), normalize_(group_norm_kernel(selected_isa())) {
  const Ort::ConstKernelInfo info(raw);
  epsilon_ = attribute<float>(info, name_, "epsilon");
  groups_ = attribute<std::int64_t>(info, name_, "groups");
  if (!std::isfinite(epsilon_) || epsilon_ < 0) refuse(name_ + ": the attribute 'epsilon' must be a number from 0 on");
  if (groups_ < 1) refuse(name_ + ": the attribute 'groups' must be 1 or more, and is " + std::to_string(groups_));
}

}  // namespace

std::vector<const OrtCustomOp*> group_norm_ops() {
  static const Op plain("GroupNorm", false), with_silu("GroupNormSilu", true);
  return {&plain, &with_silu};
}

}  // namespace handheld
