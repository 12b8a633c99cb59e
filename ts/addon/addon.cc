// The Node-API surface: install() -> [{ path, version, hooked, problem }], uninstall() -> number,
// instructionSet() -> string.
#include <node_api.h>

#include <cstdlib>
#include <exception>

#include "ops/cpu/qkv_gemm_cpu.h"
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

napi_value Install(napi_env env, napi_callback_info) {
  try {
    const std::vector<Runtime> runtimes = qkvgemm::session::Install();
    napi_value list = nullptr;
    napi_create_array_with_length(env, runtimes.size(), &list);
    for (size_t i = 0; i < runtimes.size(); ++i)
      napi_set_element(env, list, static_cast<uint32_t>(i), Describe(env, runtimes[i]));
    return list;
  } catch (const std::exception& e) {
    napi_throw_error(env, nullptr, e.what());
    return nullptr;
  }
}

napi_value Uninstall(napi_env env, napi_callback_info) {
  try {
    napi_value count = nullptr;
    napi_create_int32(env, qkvgemm::session::Uninstall(), &count);
    return count;
  } catch (const std::exception& e) {
    napi_throw_error(env, nullptr, e.what());
    return nullptr;
  }
}

// What the library's CPU kernels will use: the same selection, from the same source.
napi_value InstructionSet(napi_env env, napi_callback_info) {
  try {
    qkvgemm::cpu::Isa isa;
    std::string error;
    if (qkvgemm::cpu::SelectIsa(std::getenv("QKVGEMM_ISA"), &isa, &error))
      return String(env, qkvgemm::cpu::IsaName(isa));
    napi_throw_error(env, nullptr, error.c_str());
  } catch (const std::exception& e) {
    napi_throw_error(env, nullptr, e.what());
  }
  return nullptr;
}

}  // namespace

NAPI_MODULE_INIT() {
  napi_value install = nullptr, uninstall = nullptr;
  napi_create_function(env, "install", NAPI_AUTO_LENGTH, Install, nullptr, &install);
  napi_create_function(env, "uninstall", NAPI_AUTO_LENGTH, Uninstall, nullptr, &uninstall);
  napi_set_named_property(env, exports, "install", install);
  napi_set_named_property(env, exports, "uninstall", uninstall);
  napi_value instruction_set = nullptr;
  napi_create_function(env, "instructionSet", NAPI_AUTO_LENGTH, InstructionSet, nullptr, &instruction_set);
  napi_set_named_property(env, exports, "instructionSet", instruction_set);
  return exports;
}
