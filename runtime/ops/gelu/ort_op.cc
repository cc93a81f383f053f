// handheld.Gelu, handheld.QuickGelu and handheld.Geglu as ONNX Runtime's operators: checks what it is given and deals it to threads.
#include "../ort_kernel.h"

#include <algorithm>

#include "../ops.h"
#include "gelu.h"

namespace handheld {
namespace {

// Values that a thread takes at a time: fewer take longer to deal out than to compute.
constexpr std::int64_t kBlock = 1 << 14;

std::int64_t product(const std::vector<std::int64_t>& shape, std::size_t count) {
  std::int64_t values = 1;
  for (std::size_t i = 0; i < count; ++i) values *= shape[i];
  return values;
}

// Calls run(from, to) for blocks of `block` of the first `count` integers: on the session's threads, where there is more than one.
template <typename Run>
void in_blocks(const Ort::KernelContext& context, std::int64_t count, std::int64_t block, const Run& run) {
  if (count <= block) return run(0, count);
  parallel_for(context, (count + block - 1) / block, [&](std::int64_t i) { run(i * block, std::min(count, (i + 1) * block)); });
}

using Function = void (*)(const float* x, float* y, std::int64_t count);

struct ElementwiseOp;

class ElementwiseKernel {
 public:
  ElementwiseKernel(const OrtKernelInfo*, const ElementwiseOp& op);

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue input = context.GetInput(0);
    const std::vector<std::int64_t> shape = input.GetTensorTypeAndShapeInfo().GetShape();
    const float* x = input.GetTensorData<float>();
    float* y = Ort::KernelContext(context).GetOutput(0, shape).GetTensorMutableData<float>();
    const auto each = [&](std::int64_t from, std::int64_t to) { function_(x + from, y + from, to - from); };
    in_blocks(context, product(shape, shape.size()), kBlock, each);
  }

 private:
  Function function_;
};

struct ElementwiseOp : Operator<ElementwiseOp, ElementwiseKernel> {
  ElementwiseOp(const char* name, Function GeluKernels::*which) : Operator(name), function(which) {}
  std::size_t GetInputTypeCount() const { return 1; }

  Function GeluKernels::*const function;
};

ElementwiseKernel::ElementwiseKernel(const OrtKernelInfo*, const ElementwiseOp& op)
    : function_(gelu_kernels(selected_isa()).*op.function) {}

struct GegluOp;

class GegluKernel {
 public:
  GegluKernel(const OrtKernelInfo*, const GegluOp&) : geglu_(gelu_kernels(selected_isa()).geglu) {}

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue input = context.GetInput(0);
    std::vector<std::int64_t> shape = input.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.empty() || shape.back() % 2 != 0) {
      refuse("Geglu: the input has shape " + text_of(shape) + ", and its last axis must hold the value and the gate, of equal size");
    }
    const std::int64_t channels = shape.back() / 2, rows = product(shape, shape.size() - 1);
    shape.back() = channels;
    const float* x = input.GetTensorData<float>();
    float* y = Ort::KernelContext(context).GetOutput(0, shape).GetTensorMutableData<float>();
    if (channels == 0) return;
    in_blocks(context, rows, std::max<std::int64_t>(1, kBlock / channels), [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t row = from; row < to; ++row) {
        const float* value = x + 2 * row * channels;
        geglu_(value, value + channels, y + row * channels, channels);
      }
    });
  }

 private:
  decltype(GeluKernels::geglu) geglu_;
};

struct GegluOp : Operator<GegluOp, GegluKernel> {
  GegluOp() : Operator("Geglu") {}
  std::size_t GetInputTypeCount() const { return 1; }

  static void change_shape(std::vector<Dimension>& shape, const Inference&) {
    shape.back() = {shape.back().size < 0 ? -1 : shape.back().size / 2, ""};
  }
};

}  // namespace

std::vector<const OrtCustomOp*> gelu_ops() {
  static const ElementwiseOp gelu("Gelu", &GeluKernels::gelu), quick_gelu("QuickGelu", &GeluKernels::quick_gelu);
  static const GegluOp geglu;
  return {&gelu, &quick_gelu, &geglu};
}

}  // namespace handheld
