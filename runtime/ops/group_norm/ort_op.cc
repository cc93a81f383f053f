// handheld.GroupNorm and handheld.GroupNormSilu as ONNX Runtime's operators: checks what it is given and deals the groups to threads.
#include "../ort.h"

#include <cmath>

#include "../ops.h"
#include "group_norm.h"

namespace handheld {
namespace {

// An output of this size does not stay in a cache until the next operator reads it.
constexpr std::int64_t kStreamBytes = 32 << 20;
// Below this many values it takes longer to wake threads than to do the work.
constexpr std::int64_t kSerialValues = 1 << 14;

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

class Kernel {
 public:
  Kernel(const OrtKernelInfo* raw, const char* name, bool silu) : name_(name), silu_(silu), normalize_(group_norm_kernel(selected_isa())) {
    const Ort::ConstKernelInfo info(raw);
    epsilon_ = attribute<float>(info, "epsilon", "a float");
    groups_ = attribute<std::int64_t>(info, "groups", "an integer");
    if (!std::isfinite(epsilon_) || epsilon_ < 0) refuse(name_ + ": the attribute 'epsilon' must be a number from 0 on");
    if (groups_ < 1) refuse(name_ + ": the attribute 'groups' must be 1 or more, and is " + std::to_string(groups_));
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    try {
      compute(Ort::KernelContext(raw));
      return nullptr;
    } catch (const Ort::Exception& error) {
      return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
    } catch (const std::exception& error) {
      return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
    }
  }

 private:
  template <typename T>
  T attribute(const Ort::ConstKernelInfo& info, const char* attribute, const char* kind) const {
    try {
      return info.GetAttribute<T>(attribute);
    } catch (const Ort::Exception&) {
      refuse(name_ + ": the attribute '" + attribute + "' is missing or is not " + kind);
    }
  }

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
    const Work work{{x.GetTensorData<float>(), scale.GetTensorData<float>(), bias.GetTensorData<float>(), y.GetTensorMutableData<float>(),
                     channels, positions, groups_, epsilon_, silu_, stream},
                    normalize_};
    const std::int64_t count = shape[0] * groups_;
    if (values < kSerialValues) {
      for (std::int64_t index = 0; index < count; ++index) normalize_(work.task, index);
    } else {
      const auto one = [](void* data, std::size_t index) {
        const Work& each = *static_cast<const Work*>(data);
        each.normalize(each.task, static_cast<std::int64_t>(index));
      };
      context.ParallelFor(one, static_cast<std::size_t>(count), 0, const_cast<Work*>(&work));
    }
  }

  void check_per_channel(const Ort::ConstValue& value, const char* what, std::int64_t channels) const {
    const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape != std::vector<std::int64_t>{channels}) {
      refuse(name_ + ": the " + what + " has shape " + text_of(shape) + ", and the input has " + std::to_string(channels) + " channels");
    }
  }

  struct Work {
    GroupNorm task;
    GroupNormKernel normalize;
  };

  std::string name_;
  bool silu_;
  GroupNormKernel normalize_;
  float epsilon_;
  std::int64_t groups_;
};

struct Op : Ort::CustomOpBase<Op, Kernel, /*WithStatus=*/true> {
  Op(const char* name, bool silu) : name_(name), silu_(silu) {
    version = kOrtApiVersion;
    InferOutputShapeFn = infer_shape;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const {
    try {
      *kernel = new Kernel(info, name_, silu_);
      return nullptr;
    } catch (const std::exception& error) {
      return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
    }
  }

  const char* GetName() const { return name_; }
  std::size_t GetInputTypeCount() const { return 3; }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }

  // The output has the shape of the first input, names of dimensions and all. (Ort::ShapeInferContext would do, but in the headers that
  // are fetched it gives a named dimension a size that the runtime refuses.)
  static OrtStatusPtr infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
    const OrtApi& api = Ort::GetApi();
    OrtTensorTypeAndShapeInfo* shape = nullptr;  // the context's own
    std::size_t rank = 0;
    if (OrtStatusPtr status = api.ShapeInferContext_GetInputTypeShape(context, 0, &shape)) return status;
    if (OrtStatusPtr status = api.GetDimensionsCount(shape, &rank)) return status;
    std::vector<std::int64_t> sizes(rank);
    std::vector<const char*> names(rank);
    if (OrtStatusPtr status = api.GetDimensions(shape, sizes.data(), rank)) return status;
    if (OrtStatusPtr status = api.GetSymbolicDimensions(shape, names.data(), rank)) return status;
    bool known = rank > 0;  // 0: not even the rank is
    for (std::size_t i = 0; i < rank; ++i) known = known && (sizes[i] >= 0 || *names[i] != '\0');
    return known ? api.ShapeInferContext_SetOutputTypeShape(context, 0, shape) : nullptr;
  }

  const char* name_;
  bool silu_;
};

}  // namespace

std::vector<const OrtCustomOp*> group_norm_ops() {
  static const Op plain("GroupNorm", false), with_silu("GroupNormSilu", true);
  return {&plain, &with_silu};
}

}  // namespace handheld
