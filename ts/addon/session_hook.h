// Lets a session of onnxruntime-node register custom-op libraries, which its binding has no option for: the
// two functions that create sessions are replaced in the table through which the binding calls ONNX Runtime.
// The replacement looks for a session config entry and does nothing else where that is absent.
#pragma once

#include <string>
#include <vector>

namespace qkvgemm::session {

// The config entry, set from JavaScript as extra: { custom_ops: { libraries: "..." } }: paths separated by
// '\n'.
constexpr const char* kLibrariesEntry = "custom_ops.libraries";

struct Runtime {
  std::string path;     // of the shared library
  std::string version;  // "1.29.0"
  bool hooked;
  std::string problem;  // why it is not hooked
};

// Hooks every copy of ONNX Runtime that this process has loaded by now. Idempotent, thread-safe.
std::vector<Runtime> Install();
// Puts the original functions back; returns how many copies that concerned. Idempotent, thread-safe.
int Uninstall();

}  // namespace qkvgemm::session
