// Small helpers over ONNX Runtime's C API: statuses become exceptions inside the library, and exceptions
// become statuses at its border.
#pragma once

#include <onnxruntime_c_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory_resource>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "ops/contract.h"

namespace qkvgemm {

// The oldest API that has all that is used here (ONNX Runtime 1.18, for scratch memory on a stream); stamped
// on the op, because a runtime refuses an op with a version newer than its own.
constexpr uint32_t kApiVersion = 18;

// An OrtStatus on its way to the border; owned by whoever catches it.
struct StatusError {
  OrtStatus* status;
};

inline void ThrowIfError(OrtStatus* status) {
  if (status != nullptr) throw StatusError{status};
}

// "where: what", or `what` alone where there is no memory to join them.
inline OrtStatus* StatusOf(const OrtApi& api, OrtErrorCode code, const char* where,
                           const char* what) noexcept {
  try {
    return api.CreateStatus(code, (std::string(where) + ": " + what).c_str());
  } catch (...) {
    return api.CreateStatus(code, what);
  }
}

// Runs fn; whatever it throws comes back as a status that begins with `where`. Takes no std::string: making
// one may throw, outside of the guard.
template <typename Fn>
OrtStatus* Guard(const OrtApi& api, const char* where, const Fn& fn) noexcept {
  try {
    fn();
    return nullptr;
  } catch (const StatusError& e) {
    return e.status;
  } catch (const ContractError& e) {
    return StatusOf(api, ORT_INVALID_ARGUMENT, where, e.message.c_str());
  } catch (const std::bad_alloc&) {
    return StatusOf(api, ORT_FAIL, where, "out of memory");
  } catch (const std::exception& e) {
    return StatusOf(api, ORT_RUNTIME_EXCEPTION, where, e.what());
  } catch (...) {
    return StatusOf(api, ORT_RUNTIME_EXCEPTION, where, "unexpected error");
  }
}

// Owns the dimensions of the tensors that were read with it. Those of one call fit the buffer, which lies on
// the stack; the heap is there for ranks and splits beyond what models have.
class Arena {
 public:
  template <typename T>
  std::span<T> New(size_t count) {
    return {std::pmr::polymorphic_allocator<T>(&memory_).allocate(count), count};
  }

 private:
  std::array<std::byte, 1024> buffer_;
  std::pmr::monotonic_buffer_resource memory_{buffer_.data(), buffer_.size()};
};

// Element type and dimensions of `info`, which stays the caller's.
inline TensorInfo ReadInfo(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info, Arena& arena) {
  TensorInfo t;
  t.present = true;
  size_t rank = 0;
  ThrowIfError(api.GetTensorElementType(info, &t.type));
  ThrowIfError(api.GetDimensionsCount(info, &rank));
  const std::span<int64_t> dims = arena.New<int64_t>(rank);
  ThrowIfError(api.GetDimensions(info, dims.data(), rank));
  t.dims = dims;
  return t;
}

inline TensorInfo ReadInfo(const OrtApi& api, const OrtValue* value, Arena& arena) {
  if (value == nullptr) return {};
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ThrowIfError(api.GetTensorTypeAndShape(value, &info));
  struct Release {
    const OrtApi& api;
    OrtTensorTypeAndShapeInfo* info;
    ~Release() { api.ReleaseTensorTypeAndShapeInfo(info); }
  } release{api, info};
  return ReadInfo(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), arena);
}

// The first address from `block` on that is a multiple of `alignment`, a power of two.
inline void* AlignUp(void* block, uintptr_t alignment) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block) + alignment - 1) & ~(alignment - 1));
}

// Tensors are read through a function that is not const in the C API; nothing is written.
inline const void* ReadData(const OrtApi& api, const OrtValue* value) {
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  ThrowIfError(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

}  // namespace qkvgemm
