// handheld.FlashAttention and PartialSoftmaxAttention as ONNX Runtime's operators: checks what it is given and deals it to threads.
#include "../ort_kernel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "../ops.h"
#include "attention.h"

namespace handheld {
namespace {

constexpr std::int64_t kLine = 16;  // floats of a cache line

using Shape = std::vector<std::int64_t>;

Shape shape_of(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

struct Op;

class Kernel {
 public:
  Kernel(const OrtKernelInfo* raw, const Op& op);

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue q = context.GetInput(0), k = context.GetInput(1), v = context.GetInput(2), mask = context.GetInput(3);
    const Shape shape = shape_of(q), keys = shape_of(k), values = shape_of(v);
    if (shape.size() != 3 || shape[2] % heads_ != 0) {
      refuse(name_ + ": the queries have shape " + text_of(shape) + ", and must be [batch, tokens, " + std::to_string(heads_) +
             " heads * dim]");
    }
    if (keys.size() != 3 || keys[0] != shape[0] || keys[2] != shape[2]) {
      refuse(name_ + ": the keys have shape " + text_of(keys) + ", and the queries " + text_of(shape) + ": batch and channels must agree");
    }
    if (values != keys) refuse(name_ + ": the values have shape " + text_of(values) + ", and the keys " + text_of(keys));

    Ort::UnownedValue y = Ort::KernelContext(context).GetOutput(0, shape);
    Attention task{q.GetTensorData<float>(), k.GetTensorData<float>(), v.GetTensorData<float>(), nullptr, y.GetTensorMutableData<float>(),
                   shape[0], heads_, shape[1], keys[1], shape[2] / heads_, scale_, 0, 0, 0, 0};
    set_mask(task, mask);
    if (shape[0] * shape[1] * shape[2] == 0) return;
    run(context, task);
  }

 private:
  // Each thread takes pieces as it becomes free, and has one part of the scratch memory for all of them. That is the session's own memory,
  // which it uses again for the values of other nodes. Nothing tells how many threads a session has: there are as many parts as the machine
  // has cores; those that no thread comes to use are never touched.
  void run(const Ort::KernelContext& context, const Attention& task) const {
    const std::int64_t pieces = kernel_.pieces(task);
    const std::int64_t threads = std::min<std::int64_t>(pieces, std::max(1u, std::thread::hardware_concurrency()));
    const std::int64_t part = (kernel_.scratch(task) + kLine - 1) / kLine * kLine;
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Allocator allocator = context.GetAllocator(*static_cast<const OrtMemoryInfo*>(memory));
    Ort::MemoryAllocation allocation = allocator.GetAllocation(static_cast<std::size_t>(threads * part + kLine) * sizeof(float));
    const auto address = reinterpret_cast<std::uintptr_t>(allocation.get());
    constexpr std::size_t align = kLine * sizeof(float);
    float* const scratch = reinterpret_cast<float*>((address + align - 1) / align * align);
    std::atomic<std::int64_t> next{0};
    parallel_for(context, threads, [&](std::int64_t thread) {
      for (std::int64_t piece; (piece = next++) < pieces;) kernel_.run(task, piece, scratch + thread * part);
    });
  }

  // A mask of the single value 0 is none.
  void set_mask(Attention& task, const Ort::ConstValue& mask) const {
    const Shape shape = shape_of(mask), whole = {task.batch, task.heads, task.queries, task.keys};
    bool fits = shape.size() == whole.size();
    std::int64_t size = 1, strides[4] = {};
    for (std::size_t i = whole.size(); fits && i-- > 0;) {
      fits = shape[i] == whole[i] || shape[i] == 1;
      strides[i] = shape[i] == 1 ? 0 : size;
      size *= shape[i];
    }
    if (!fits) refuse(name_ + ": the mask has shape " + text_of(shape) + ", and must be " + text_of(whole) + ", or 1 on any of these axes");
    const float* values = mask.GetTensorData<float>();
    if (size == 1 && *values == 0) return;
    task.mask = values;
    task.mask_image_stride = strides[0];
    task.mask_head_stride = strides[1];
    task.mask_query_stride = strides[2];
    task.mask_key_stride = strides[3];
  }

  std::string name_;
  AttentionKernel kernel_;
  std::int64_t heads_;
  float scale_;
};

struct Op : Operator<Op, Kernel> {
  Op(const char* name, bool flash) : Operator(name), flash(flash) {}
  std::size_t GetInputTypeCount() const { return 4; }

  const bool flash;
};

Kernel::Kernel(const OrtKernelInfo* raw, const Op& op) : name_(op.GetName()) {
  const Ort::ConstKernelInfo info(raw);
  kernel_ = op.flash ? flash_attention_kernel(selected_isa(), operands_of(info, name_)) : partial_softmax_attention_kernel(selected_isa());
  heads_ = attribute<std::int64_t>(info, name_, "heads");
  scale_ = attribute<float>(info, name_, "scale");
  if (heads_ < 1) refuse(name_ + ": the attribute 'heads' must be 1 or more, and is " + std::to_string(heads_));
  if (!std::isfinite(scale_)) refuse(name_ + ": the attribute 'scale' must be a finite number");
}

}  // namespace

std::vector<const OrtCustomOp*> attention_ops() {
  static const Op flash("FlashAttention", true), partial_softmax("PartialSoftmaxAttention", false);
  return {&flash, &partial_softmax};
}

}  // namespace handheld
