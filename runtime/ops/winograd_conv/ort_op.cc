// handheld.WinogradConv, WinogradConvAdd and WinogradConvSilu as ONNX Runtime's operators: checks what they are given, and finds memory
// and threads.
#include "../ort_kernel.h"

#include <algorithm>
#include <thread>

#include "../ops.h"
#include "winograd_conv.h"

namespace handheld {
namespace {

constexpr std::int64_t kTiles[] = {2, 4, 6};
constexpr std::size_t kAlign = 64;

struct Op;

class Kernel {
 public:
  Kernel(const OrtKernelInfo* raw, const Op& op);

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue x = context.GetInput(0), u = context.GetInput(1);
    const std::vector<std::int64_t> shape = x.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4) refuse(name_ + ": the input has shape " + text_of(shape) + ", and must be [batch, channels, height, width]");
    const std::vector<std::int64_t> output = {shape[0], channels_out_, shape[2], shape[3]};

    WinogradConv task{};
    task.operands = check_weights(u, shape[1]);
    task.x = x.GetTensorData<float>();
    task.u = u.GetTensorRawData();
    task.bias = checked(context, 2, "bias", {channels_out_});
    task.residual = adds_ ? checked(context, 3, "residual", output) : nullptr;
    task.y = Ort::KernelContext(context).GetOutput(0, output).GetTensorMutableData<float>();
    task.batch = shape[0];
    task.channels_in = shape[1];
    task.channels_out = channels_out_;
    task.height = shape[2];
    task.width = shape[3];
    task.tile = static_cast<int>(tile_);
    task.silu = silu_;
    if (task.batch * task.height * task.width == 0) return;

    // The session's own memory, which it uses again for the values of other nodes. Nothing tells how many threads a session has: as many
    // pieces as the machine has cores; those that no thread comes to use are never touched.
    const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Allocator allocator = context.GetAllocator(*static_cast<const OrtMemoryInfo*>(memory));
    Ort::MemoryAllocation allocation = allocator.GetAllocation(winograd_conv_scratch(task, isa_, threads) + kAlign);
    const auto address = reinterpret_cast<std::uintptr_t>(allocation.get());
    void* const scratch = reinterpret_cast<void*>((address + kAlign - 1) / kAlign * kAlign);
    winograd_conv(task, isa_, threads, scratch, [&](std::int64_t count, const std::function<void(std::int64_t)>& each) {
      parallel_for(context, count, each);
    });
  }

 private:
  // What the weights are; refuses what does not fit the input.
  Operands check_weights(const Ort::ConstValue& u, std::int64_t channels_in) const {
    const Operands type = operands_of(u, name_);
    const bool pairs = type != Operands::kFloat32;
    const std::vector<std::int64_t> shape = u.GetTensorTypeAndShapeInfo().GetShape();
    const std::int64_t panels = (channels_out_ + kPanelChannels - 1) / kPanelChannels, planes = (tile_ + 2) * (tile_ + 2);
    std::vector<std::int64_t> expected = {panels, planes, pairs ? (channels_in + 1) / 2 : channels_in, kPanelChannels};
    if (pairs) expected.push_back(2);
    if (shape != expected) {
      refuse(name_ + ": the weights have shape " + text_of(shape) + ", and " + std::to_string(channels_in) + " to " +
             std::to_string(channels_out_) + " channels in tiles of " + std::to_string(tile_) + " take " + text_of(expected));
    }
    return type;
  }

  const float* checked(const Ort::KernelContext& context, std::size_t index, const char* what,
                       const std::vector<std::int64_t>& expected) const {
    const Ort::ConstValue value = context.GetInput(index);
    const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape != expected) refuse(name_ + ": the " + what + " has shape " + text_of(shape) + ", and must have " + text_of(expected));
    return value.GetTensorData<float>();
  }

  std::string name_;
  Isa isa_;
  std::int64_t tile_;
  std::int64_t channels_out_;
  bool adds_;
  bool silu_;
};

// `adds`: there is a fourth input, the residual. A function's body cannot ask whether an optional input is there, hence three operators.
struct Op : Operator<Op, Kernel> {
  Op(const char* name, bool adds, bool silu) : Operator(name), adds(adds), silu(silu) {}

  std::size_t GetInputTypeCount() const { return adds ? 4 : 3; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const {
    // undefined: any type; the kernel says which it takes
    return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }

  static void change_shape(std::vector<Dimension>& shape, const Inference& inference) {
    if (shape.size() == 4) shape[1] = {inference.integer("channels_out"), ""};
  }

  const bool adds;
  const bool silu;
};

Kernel::Kernel(const OrtKernelInfo* raw, const Op& op) : name_(op.GetName()), isa_(selected_isa()), adds_(op.adds), silu_(op.silu) {
  const Ort::ConstKernelInfo info(raw);
  tile_ = attribute<std::int64_t>(info, name_, "tile");
  channels_out_ = attribute<std::int64_t>(info, name_, "channels_out");
  if (std::find(std::begin(kTiles), std::end(kTiles), tile_) == std::end(kTiles)) {
    refuse(name_ + ": the attribute 'tile' must be 2, 4 or 6, and is " + std::to_string(tile_));
  }
  if (channels_out_ < 1) refuse(name_ + ": the attribute 'channels_out' must be 1 or more, and is " + std::to_string(channels_out_));
}

}  // namespace

std::vector<const OrtCustomOp*> winograd_conv_ops() {
  static const Op plain("WinogradConv", false, false), with_add("WinogradConvAdd", true, false), with_silu("WinogradConvSilu", false, true);
  return {&plain, &with_add, &with_silu};
}

}  // namespace handheld
