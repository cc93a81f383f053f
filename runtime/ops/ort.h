// ONNX Runtime's C++ interface, as the library uses it. Only library.cc and the ort_op.cc of each room include this.
#pragma once

#define ORT_API_MANUAL_INIT  // the interface comes from the runtime that loads the library: nothing is linked
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <string>

namespace handheld {

// The oldest interface that has all we use is asked for, so that the library loads into older runtimes than its headers are from.
constexpr std::uint32_t kOrtApiVersion = ORT_API_VERSION < 24 ? ORT_API_VERSION : 24;

[[noreturn]] inline void refuse(const std::string& sentence) { throw Ort::Exception(sentence, ORT_INVALID_ARGUMENT); }

}  // namespace handheld
