// handheld.Linear, LinearAdd and LinearGeglu as ONNX Runtime's operators: checks what they are given and deals blocks to threads.
#include "../ort_kernel.h"

#include <algorithm>

#include "../ops.h"
#include "linear.h"

namespace handheld {
namespace {

constexpr std::int64_t kRows = 264;         // of a block at most: enough to use weights often
constexpr std::int64_t kFewRows = 24;       // of a block at least, unless there are fewer
constexpr std::int64_t kTileRows = 6;       // a multiple of the rows of every kernel's tiles
constexpr std::int64_t kGroups = 4;         // of panels computed together, in a block at most: one is fetched while another is used
constexpr std::int64_t kBlocks = 16;        // fewer leave threads idle at the end
constexpr std::int64_t kRoundedRows = 16;   // that a thread rounds at a time

std::int64_t blocks_of(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

struct Op;

class Kernel {
 public:
  Kernel(const OrtKernelInfo* raw, const Op& op);

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue x = context.GetInput(0), weights = context.GetInput(1), bias = context.GetInput(2);
    std::vector<std::int64_t> shape = x.GetTensorTypeAndShapeInfo().GetShape();
    const std::int64_t depth = depth_;
    if (shape.empty() || shape.back() != depth) {
      refuse(name_ + ": the input has shape " + text_of(shape) + ", and must be [..., " + std::to_string(depth) + "]");
    }
    std::int64_t rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    const LinearKernel& kernel = kernels_.of(check_weights(weights, depth));
    check_shape(bias, "bias", {columns_});
    shape.back() = columns_;
    const float* residual = nullptr;
    if (form_ == LinearForm::kAdd) {
      const Ort::ConstValue value = context.GetInput(3);
      check_shape(value, "residual", shape);
      residual = value.GetTensorData<float>();
    }
    if (form_ == LinearForm::kGeglu) shape.back() = columns_ / 2;
    float* y = Ort::KernelContext(context).GetOutput(0, shape).GetTensorMutableData<float>();
    if (rows == 0) return;

    Linear task{x.GetTensorData<float>(), nullptr, weights.GetTensorRawData(), bias.GetTensorData<float>(), residual, y, rows, depth,
                columns_, form_};
    if (kernel.round == nullptr) return multiply(context, task, kernel);

    const std::int64_t stride = depth + depth % 2;
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Allocator allocator = context.GetAllocator(*static_cast<const OrtMemoryInfo*>(memory));
    Ort::MemoryAllocation allocation = allocator.GetAllocation(static_cast<std::size_t>(rows * stride + 1) * sizeof(std::uint16_t));
    auto* const rounded = static_cast<std::uint16_t*>(allocation.get());
    const auto round = [&](std::int64_t i) {
      const std::int64_t row = i * kRoundedRows;
      kernel.round(task.x + row * depth, rounded + row * stride, std::min(kRoundedRows, rows - row), depth);
    };
    if (rows <= kRoundedRows) {
      round(0);
    } else {
      parallel_for(context, blocks_of(rows, kRoundedRows), round);
    }
    task.rounded = rounded;
    multiply(context, task, kernel);
  }

 private:
  // Blocks follow each other along the panels: the rows of x that threads share stay in their caches.
  void multiply(const Ort::KernelContext& context, const Linear& task, const LinearKernel& kernel) const {
    const std::int64_t columns = form_ == LinearForm::kGeglu ? columns_ / 2 : columns_;
    const std::int64_t panels = blocks_of(columns, kPanelColumns);
    const std::int64_t group = form_ == LinearForm::kGeglu ? std::max<std::int64_t>(1, kernels_.panels / 2) : kernels_.panels;
    std::int64_t row_blocks = blocks_of(task.rows, kRows), groups = kGroups;
    const auto count = [&] { return row_blocks * blocks_of(panels, groups * group); };
    while (groups > 1 && count() < kBlocks) --groups;
    while (task.rows >= 2 * kFewRows * row_blocks && count() < kBlocks) row_blocks *= 2;
    const std::int64_t height = blocks_of(task.rows, row_blocks * kTileRows) * kTileRows, width = groups * group;
    row_blocks = blocks_of(task.rows, height);
    const std::int64_t panel_blocks = blocks_of(panels, width);
    parallel_for(context, row_blocks * panel_blocks, [&](std::int64_t i) {
      const std::int64_t row = i / panel_blocks * height, panel = i % panel_blocks * width;
      kernel.multiply(task, {row, std::min(row + height, task.rows), panel, std::min(panel + width, panels)});
    });
  }

  // What the weights are.
  Operands check_weights(const Ort::ConstValue& weights, std::int64_t depth) const {
    const Operands type = operands_of(weights, name_);
    const std::int64_t together = type == Operands::kFloat32 ? 1 : 2;
    const std::vector<std::int64_t> expected = {blocks_of(columns_, kPanelColumns), blocks_of(depth, together), kPanelColumns, together};
    check_shape(weights, "weights", expected);
    return type;
  }

  void check_shape(const Ort::ConstValue& value, const char* what, const std::vector<std::int64_t>& expected) const {
    const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape != expected) refuse(name_ + ": the shape of the " + what + " is " + text_of(shape) + ", and must be " + text_of(expected));
  }

  std::string name_;
  LinearForm form_;
  LinearKernels kernels_;
  std::int64_t depth_, columns_;
};

struct Op : Operator<Op, Kernel> {
  Op(const char* name, LinearForm which) : Operator(name), form(which) {
    if (which == LinearForm::kGeglu) {
      this->InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) { return infer(context, 2); };
    } else {
      this->InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) { return infer(context, 1); };
    }
  }
  std::size_t GetInputTypeCount() const { return form == LinearForm::kAdd ? 4 : 3; }
  // the weights are of either type: the kernel looks
  ONNXTensorElementDataType GetInputType(std::size_t index) const {
    return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }

  static OrtStatusPtr infer(OrtShapeInferContext* context, std::int64_t divisor) {
    return status_of(ORT_INVALID_ARGUMENT, [&] {
      const Inference inference(context);
      std::vector<Dimension> shape = inference.input(0);
      if (!shape.empty()) shape.back() = {inference.integer("channels_out") / divisor, ""};
      inference.set_output(shape);
    });
  }

  const LinearForm form;
};

Kernel::Kernel(const OrtKernelInfo* raw, const Op& op) : name_(op.GetName()), form_(op.form), kernels_(linear_kernels(selected_isa())) {
  const Ort::ConstKernelInfo info(raw);
  depth_ = attribute<std::int64_t>(info, name_, "channels_in");
  columns_ = attribute<std::int64_t>(info, name_, "channels_out");
  if (depth_ < 1) refuse(name_ + ": the attribute 'channels_in' must be 1 or more, and is " + std::to_string(depth_));
  if (columns_ < 1) refuse(name_ + ": the attribute 'channels_out' must be 1 or more, and is " + std::to_string(columns_));
  if (form_ == LinearForm::kGeglu && columns_ % (2 * kPanelColumns) != 0) {
    refuse(name_ + ": the attribute 'channels_out' must be a multiple of 32, and is " + std::to_string(columns_));
  }
}

}  // namespace

std::vector<const OrtCustomOp*> linear_ops() {
  static const Op plain("Linear", LinearForm::kPlain), add("LinearAdd", LinearForm::kAdd), geglu("LinearGeglu", LinearForm::kGeglu);
  return {&plain, &add, &geglu};
}

}  // namespace handheld
