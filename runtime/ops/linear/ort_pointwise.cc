// handheld.PointwiseConv and PointwiseConvAdd as ONNX Runtime's operators: a linear layer along the channels of a picture.
//
// In [channels, pixels] such a convolution is W X + b: the kernels of linear.h with W in the place of the activations and the picture in
// that of the weights, packed as they are. A thread packs as many pixels as its cache holds and multiplies them by all of W.
#include "../ort_kernel.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "../ops.h"
#include "linear.h"

namespace handheld {
namespace {

constexpr std::int64_t kPackedBytes = 256 << 10;  // of the pixels of a block: a quarter of a second-level cache of 1 MB
constexpr std::int64_t kMostPixels = 1024;        // of a block
constexpr std::int64_t kFewRows = 24;             // of a block at least, unless there are fewer
constexpr std::int64_t kTileRows = 6;              // a multiple of the rows of every kernel's tiles
constexpr std::int64_t kBlocks = 16;              // fewer leave threads idle at the end
constexpr std::int64_t kAlign = 64;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Op;

class Kernel {
 public:
  Kernel(const OrtKernelInfo* raw, const Op& op);

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue x = context.GetInput(0), weights = context.GetInput(1);
    const std::vector<std::int64_t> shape = x.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4) refuse(name_ + ": the input has shape " + text_of(shape) + ", and must be [batch, channels, height, width]");
    const std::int64_t batch = shape[0], depth = shape[1], pixels = shape[2] * shape[3];
    const std::vector<std::int64_t> matrix = weights.GetTensorTypeAndShapeInfo().GetShape();
    const Operands operands = check_weights(weights, depth);
    const std::int64_t channels_out = matrix[0];
    const std::vector<std::int64_t> output = {batch, channels_out, shape[2], shape[3]};
    const float* const bias = checked(context, 2, "bias", {channels_out});
    const float* const residual = adds_ ? checked(context, 3, "residual", output) : nullptr;
    float* const y = Ort::KernelContext(context).GetOutput(0, output).GetTensorMutableData<float>();
    if (batch * pixels == 0) return;

    const bool pairs = kernels_.of(operands).round != nullptr;  // else bfloat16 weights are made floats, which is exact
    const LinearKernel& kernel = pairs ? kernels_.of(operands) : kernels_.float32;
    const std::int64_t group = kernels_.panels * kPanelColumns, bytes = pairs ? sizeof(std::uint16_t) : sizeof(float);
    const std::int64_t groups = kPackedBytes / (std::max<std::int64_t>(depth, 1) * bytes) / group;
    const std::int64_t width = std::clamp(groups, std::int64_t{1}, divide_up(std::min(pixels, kMostPixels), group)) * group;
    const std::int64_t columns = divide_up(pixels, width);
    std::int64_t rows = 1;
    while (batch * columns * rows < kBlocks && channels_out >= 2 * kFewRows * rows) rows *= 2;
    const std::int64_t height = divide_up(channels_out, rows * kTileRows) * kTileRows;

    const std::int64_t count = batch * columns * rows;
    const std::int64_t workers = std::min<std::int64_t>(count, std::max(1u, std::thread::hardware_concurrency()));
    const std::int64_t block_bytes = divide_up(depth, 2) * 2 * width * bytes;
    const std::int64_t as_floats = divide_up(channels_out * depth * static_cast<std::int64_t>(sizeof(float)), kAlign) * kAlign;
    const std::int64_t wide_bytes = operands != Operands::kFloat32 && !pairs ? as_floats : 0;
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Allocator allocator = context.GetAllocator(*static_cast<const OrtMemoryInfo*>(memory));
    Ort::MemoryAllocation allocation = allocator.GetAllocation(static_cast<std::size_t>(wide_bytes + workers * block_bytes + kAlign));
    const auto address = reinterpret_cast<std::uintptr_t>(allocation.get());
    char* const scratch = reinterpret_cast<char*>((address + kAlign - 1) / kAlign * kAlign);
    const auto* const narrow = static_cast<const std::uint16_t*>(weights.GetTensorRawData());
    const float* const w = wide_bytes == 0 ? static_cast<const float*>(weights.GetTensorRawData()) : reinterpret_cast<float*>(scratch);
    if (wide_bytes > 0) {
      parallel_for(context, channels_out, [&](std::int64_t row) {
        widen(narrow + row * depth, depth, reinterpret_cast<float*>(scratch) + row * depth);
      });
    }
    const auto multiply = [&](std::int64_t index, void* packed) {
      const std::int64_t row = index % rows * height, column = index / rows % columns * width, image = index / rows / columns;
      const std::int64_t size = std::min(width, pixels - column), last = std::min(row + height, channels_out);
      const std::int64_t first = image * channels_out * pixels + column;
      const float* const from = x.GetTensorData<float>() + image * depth * pixels + column;
      Linear task{pairs ? nullptr : w, pairs ? narrow : nullptr, packed, bias, residual == nullptr ? nullptr : residual + first, y + first,
                  channels_out, depth, size, residual == nullptr ? LinearForm::kPlain : LinearForm::kAdd};
      task.bias_of_rows = true;
      task.stride = pixels;
      const LinearBlock block{row, last, 0, divide_up(size, kPanelColumns)};
      if (row >= last) return;
      kernel.pack(from, pixels, depth, size, packed);
      kernel.multiply(task, block);
    };
    std::atomic<std::int64_t> next{0};
    parallel_for(context, workers, [&](std::int64_t worker) {
      char* const packed = scratch + wide_bytes + worker * block_bytes;
      for (std::int64_t index = next++; index < count; index = next++) multiply(index, packed);
    });
  }

 private:
  static void widen(const std::uint16_t* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(from[i]) << 16;
      std::memcpy(to + i, &bits, sizeof(bits));
    }
  }

  // What the weights are; refuses what does not fit the input.
  Operands check_weights(const Ort::ConstValue& weights, std::int64_t channels) const {
    const std::vector<std::int64_t> shape = weights.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[1] != channels || shape[2] != 1 || shape[3] != 1) {
      refuse(name_ + ": the shape of the weights is " + text_of(shape) + ", and must be [channels out, " + std::to_string(channels) +
             ", 1, 1]");
    }
    const Operands operands = operands_of(weights, name_);
    if (operands != Operands::kFloat32 && channels % 2 != 0) {
      refuse(name_ + ": " + name_of(operands) + " weights take an even number of channels, and there are " + std::to_string(channels));
    }
    return operands;
  }

  const float* checked(const Ort::KernelContext& context, std::size_t index, const char* what,
                       const std::vector<std::int64_t>& expected) const {
    const Ort::ConstValue value = context.GetInput(index);
    const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape != expected) refuse(name_ + ": the shape of the " + what + " is " + text_of(shape) + ", and must be " + text_of(expected));
    return value.GetTensorData<float>();
  }

  std::string name_;
  LinearKernels kernels_;
  bool adds_;
};

struct Op : Operator<Op, Kernel> {
  Op(const char* name, bool adds) : Operator(name), adds(adds) {}

  std::size_t GetInputTypeCount() const { return adds ? 4 : 3; }
  // the weights are of either type: the kernel looks
  ONNXTensorElementDataType GetInputType(std::size_t index) const {
    return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }

  static void change_shape(std::vector<Dimension>& shape, const Inference& inference) {
    const std::vector<Dimension> weights = inference.input(1);
    if (shape.size() == 4) shape[1] = weights.empty() ? Dimension{-1, ""} : weights[0];
  }

  const bool adds;
};

Kernel::Kernel(const OrtKernelInfo*, const Op& op) : name_(op.GetName()), kernels_(linear_kernels(selected_isa())), adds_(op.adds) {}

}  // namespace

std::vector<const OrtCustomOp*> pointwise_conv_ops() {
  static const Op plain("PointwiseConv", false), add("PointwiseConvAdd", true);
  return {&plain, &add};
}

}  // namespace handheld
