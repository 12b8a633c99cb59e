// The Node-API surface: install() -> [{ path, version, hooked, problem }], uninstall() -> number,
// instructionSet() -> string, cudaDevices() -> string[], tuningFile() -> string.
#include <node_api.h>

#include <cstdlib>
#include <exception>
#include <stdexcept>

#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/tuning.h"
#include "ts/addon/cuda_devices.h"
#include "ts/addon/session_hook.h"

namespace {

using qkvgemm::session::Runtime;

napi_value String(napi_env env, const std::string& text) {
  napi_value value = nullptr;
  napi_create_string_utf8(env, text.data(), text.size(), &value);
  return value;
}

napi_value Describe(napi_env env, const Runtime& runtime) {
  napi_value object = nullptr, hooked = nullptr;
  napi_create_object(env, &object);
  napi_get_boolean(env, runtime.hooked, &hooked);
  napi_set_named_property(env, object, "path", String(env, runtime.path));
  napi_set_named_property(env, object, "version", String(env, runtime.version));
  napi_set_named_property(env, object, "hooked", hooked);
  napi_set_named_property(env, object, "problem", String(env, runtime.problem));
  return object;
}

template <typename T, typename Convert>
napi_value List(napi_env env, const std::vector<T>& items, const Convert& convert) {
  napi_value list = nullptr;
  napi_create_array_with_length(env, items.size(), &list);
  for (size_t i = 0; i < items.size(); ++i)
    napi_set_element(env, list, static_cast<uint32_t>(i), convert(env, items[i]));
  return list;
}

// A function for Node-API that throws in JavaScript what `function` throws.
template <napi_value (*function)(napi_env)>
napi_value Guarded(napi_env env, napi_callback_info) {
  try {
    return function(env);
  } catch (const std::exception& e) {
    napi_throw_error(env, nullptr, e.what());
    return nullptr;
  }
}

napi_value Install(napi_env env) { return List(env, qkvgemm::session::Install(), Describe); }

napi_value Uninstall(napi_env env) {
  napi_value count = nullptr;
  napi_create_int32(env, qkvgemm::session::Uninstall(), &count);
  return count;
}

// What the library's CPU kernels will use: the same selection, from the same source.
napi_value InstructionSet(napi_env env) {
  qkvgemm::cpu::Isa isa;
  std::string error;
  if (!qkvgemm::cpu::SelectIsa(std::getenv("QKVGEMM_ISA"), &isa, &error)) throw std::runtime_error(error);
  return String(env, qkvgemm::cpu::IsaName(isa));
}

napi_value CudaDevices(napi_env env) { return List(env, qkvgemm::session::CudaDevices(), String); }

// Where the library keeps the plans that it timed: the same answer, from the same source.
napi_value TuningFile(napi_env env) { return String(env, qkvgemm::tuning::DefaultFile()); }

void Export(napi_env env, napi_value exports, const char* name, napi_callback function) {
  napi_value value = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, function, nullptr, &value);
  napi_set_named_property(env, exports, name, value);
}

}  // namespace

NAPI_MODULE_INIT() {
  Export(env, exports, "install", Guarded<Install>);
  Export(env, exports, "uninstall", Guarded<Uninstall>);
  Export(env, exports, "instructionSet", Guarded<InstructionSet>);
  Export(env, exports, "cudaDevices", Guarded<CudaDevices>);
  Export(env, exports, "tuningFile", Guarded<TuningFile>);
  return exports;
}
