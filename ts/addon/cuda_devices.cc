#include "ts/addon/cuda_devices.h"

#include <dlfcn.h>

namespace qkvgemm::session {
namespace {

// Of the driver's C interface, whose functions return 0 for success.
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;

struct Driver {
  int (*init)(unsigned flags) = nullptr;
  int (*count)(int* count) = nullptr;
  int (*get)(int* device, int ordinal) = nullptr;
  int (*name)(char* name, int length, int device) = nullptr;
  int (*attribute)(int* value, int attribute, int device) = nullptr;
};

template <typename Fn>
bool Find(void* library, const char* name, Fn* function) {
  *function = reinterpret_cast<Fn>(dlsym(library, name));
  return *function != nullptr;
}

bool Load(Driver* driver) {
  // Never closed: a driver that has been initialised cannot be unloaded.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  return library != nullptr && Find(library, "cuInit", &driver->init) &&
         Find(library, "cuDeviceGetCount", &driver->count) && Find(library, "cuDeviceGet", &driver->get) &&
         Find(library, "cuDeviceGetName", &driver->name) &&
         Find(library, "cuDeviceGetAttribute", &driver->attribute) && driver->init(0) == 0;
}

}  // namespace

std::vector<std::string> CudaDevices() {
  std::vector<std::string> devices;
  Driver driver;
  int count = 0;
  if (!Load(&driver) || driver.count(&count) != 0) return devices;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    int device = 0, major = 0, minor = 0;
    char name[256] = {};
    if (driver.get(&device, ordinal) != 0 || driver.name(name, sizeof name, device) != 0 ||
        driver.attribute(&major, kComputeCapabilityMajor, device) != 0 ||
        driver.attribute(&minor, kComputeCapabilityMinor, device) != 0)
      continue;
    devices.push_back(std::string(name) + ", compute capability " + std::to_string(major) + "." +
                      std::to_string(minor));
  }
  return devices;
}

}  // namespace qkvgemm::session
