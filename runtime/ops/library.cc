// The entry point that ONNX Runtime calls: adds the domain `handheld` to a session's options.
#include "ops.h"
#include "ort.h"

namespace {

// Made once and never destroyed: sessions keep pointing to it, and some end after the destructors of this library have run.
OrtCustomOpDomain* domain() {
  static OrtCustomOpDomain* const only = [] {
    Ort::CustomOpDomain made("handheld");
    for (const auto& room : {handheld::group_norm_ops(), handheld::winograd_conv_ops(), handheld::gelu_ops(), handheld::linear_ops(),
                             handheld::pointwise_conv_ops(), handheld::attention_ops()}) {
      for (const auto* op : room) made.Add(op);
    }
    return made.release();
  }();
  return only;
}

}  // namespace

#if defined(_WIN32)
#define HANDHELD_EXPORT __declspec(dllexport)
#else
#define HANDHELD_EXPORT __attribute__((visibility("default")))
#endif

extern "C" HANDHELD_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(handheld::kOrtApiVersion);
  if (api == nullptr) {
    // the one function that every version of the interface has
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "the handheld kernel library needs ONNX Runtime 1.24 or newer");
  }
  try {
    Ort::InitApi(api);
    return api->AddCustomOpDomain(options, domain());
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
