// What the ort_op.cc of every room is made of: an operator of ONNX Runtime whose errors are sentences, its attributes, shapes and threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "operands.h"
#include "ort.h"

namespace handheld {

inline std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// Calls what may throw, and turns that into the status that C functions return. `code` is the kind of what is not ONNX Runtime's own.
template <typename Function>
inline OrtStatusPtr status_of(OrtErrorCode code, Function&& function) {
  try {
    function();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(code, error.what());
  }
}

// An attribute of a node; T is float or std::int64_t. Refuses in the name of the operator where it is missing or of another type.
template <typename T>
inline T attribute(const Ort::ConstKernelInfo& info, const std::string& op, const char* name) {
  try {
    return info.GetAttribute<T>(name);
  } catch (const Ort::Exception&) {
    const char* kind = std::is_same_v<T, float> ? "a float" : "an integer";
    refuse(op + ": the attribute '" + name + "' is missing or is not " + kind);
  }
}

// The attribute 'operands': float32 where it is missing.
inline Operands operands_of(const Ort::ConstKernelInfo& info, const std::string& op) {
  std::string name = name_of(Operands::kFloat32);
  try {
    name = info.GetAttribute<std::string>("operands");
  } catch (const Ort::Exception&) {
  }
  for (const Operands each : {Operands::kFloat32, Operands::kBfloat16, Operands::kFloat16}) {
    if (name == name_of(each)) return each;
  }
  refuse(op + ": the attribute 'operands' must be float32, bfloat16 or float16, and is '" + name + "'");
}

// What products with these weights have: the type that they are stored in.
inline Operands operands_of(const Ort::ConstValue& weights, const std::string& op) {
  switch (weights.GetTensorTypeAndShapeInfo().GetElementType()) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return Operands::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return Operands::kBfloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return Operands::kFloat16;
    default: refuse(op + ": the weights must be float32, bfloat16 or float16");
  }
}

// Calls task(index) for every index below `count`, on the session's threads and in no order. A task must not throw.
template <typename Task>
inline void parallel_for(const Ort::KernelContext& context, std::int64_t count, const Task& task) {
  const auto one = [](void* data, std::size_t index) { (*static_cast<const Task*>(data))(static_cast<std::int64_t>(index)); };
  if (count > 0) context.ParallelFor(one, static_cast<std::size_t>(count), 0, const_cast<Task*>(&task));
}

// A dimension of a tensor as far as a graph tells it: a size, or -1 and a name, or -1 and "" where nothing is known.
struct Dimension {
  std::int64_t size;
  std::string name;
};

// What shape inference of one node may look at.
class Inference {
 public:
  explicit Inference(OrtShapeInferContext* context) : context_(context) {}

  // The shape of an input; empty where not even its rank is known.
  std::vector<Dimension> input(std::size_t index) const {
    const OrtApi& api = Ort::GetApi();
    OrtTensorTypeAndShapeInfo* shape = nullptr;  // the context's own
    std::size_t rank = 0;
    Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context_, index, &shape));
    Ort::ThrowOnError(api.GetDimensionsCount(shape, &rank));
    std::vector<std::int64_t> sizes(rank);
    std::vector<const char*> names(rank);
    Ort::ThrowOnError(api.GetDimensions(shape, sizes.data(), rank));
    Ort::ThrowOnError(api.GetSymbolicDimensions(shape, names.data(), rank));
    std::vector<Dimension> dimensions;
    for (std::size_t i = 0; i < rank; ++i) dimensions.push_back({sizes[i], names[i]});
    return dimensions;
  }

  std::int64_t integer(const char* attribute) const {
    const OrtOpAttr* found = nullptr;
    std::int64_t value = 0;
    std::size_t size = 0;
    Ort::ThrowOnError(Ort::GetApi().ShapeInferContext_GetAttribute(context_, attribute, &found));
    Ort::ThrowOnError(Ort::GetApi().ReadOpAttr(found, ORT_OP_ATTR_INT, &value, sizeof(value), &size));
    return value;
  }

  // Gives the first output a shape, if all of it is known: the runtime takes a dimension with neither size nor name for a size of -1.
  // (Ort::ShapeInferContext would do, but in the headers that are fetched it gives a named dimension a size that the runtime refuses.)
  void set_output(const std::vector<Dimension>& dimensions) const {
    std::vector<std::int64_t> sizes;
    std::vector<const char*> names;
    for (const Dimension& dimension : dimensions) {
      if (dimension.size < 0 && dimension.name.empty()) return;
      sizes.push_back(dimension.size);
      names.push_back(dimension.name.c_str());
    }
    if (dimensions.empty()) return;
    const OrtApi& api = Ort::GetApi();
    OrtTensorTypeAndShapeInfo* made = nullptr;
    Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&made));
    const Ort::TensorTypeAndShapeInfo shape(made);  // frees it
    Ort::ThrowOnError(api.SetTensorElementType(made, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
    Ort::ThrowOnError(api.SetDimensions(made, sizes.data(), sizes.size()));
    Ort::ThrowOnError(api.SetSymbolicDimensions(made, names.data(), names.size()));
    Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context_, 0, made));
  }

 private:
  OrtShapeInferContext* context_;
};

// The kernel of a room, as the runtime calls it.
template <typename Kernel>
struct GuardedKernel : Kernel {
  using Kernel::Kernel;
  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return status_of(ORT_FAIL, [&] { this->compute(Ort::KernelContext(context)); });
  }
};

// An operator on float tensors with one output. A room derives its own (`Self`) from it, which says the number of inputs, and whatever
// else differs from the defaults here. Its Kernel has
//   Kernel(const OrtKernelInfo*, const Self&)    which refuses bad attributes,
//   void compute(const Ort::KernelContext&)      which refuses bad inputs; called by many threads at once where one session is.
template <typename Self, typename Kernel>
struct Operator : Ort::CustomOpBase<Self, GuardedKernel<Kernel>, /*WithStatus=*/true> {
  explicit Operator(const char* name) : name_(name) {
    this->version = kOrtApiVersion;
    this->InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatusPtr {
      return status_of(ORT_INVALID_ARGUMENT, [&] {
        const Inference inference(context);
        std::vector<Dimension> shape = inference.input(0);
        if (!shape.empty()) Self::change_shape(shape, inference);
        inference.set_output(shape);
      });
    };
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return status_of(ORT_INVALID_ARGUMENT, [&] { *kernel = new GuardedKernel<Kernel>(info, static_cast<const Self&>(*this)); });
  }

  const char* GetName() const { return name_; }
  std::size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  ONNXTensorElementDataType GetOutputType(std::size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }

  // Makes the shape of the output of that of the first input, whose rank is known. By default it is the same.
  static void change_shape(std::vector<Dimension>&, const Inference&) {}

 private:
  const char* name_;
};

}  // namespace handheld
