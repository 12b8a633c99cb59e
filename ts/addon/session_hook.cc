#include "ts/addon/session_hook.h"

#include <dlfcn.h>
#include <link.h>
#include <onnxruntime_c_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

namespace qkvgemm::session {
namespace {

// All that is used here is in the API since ONNX Runtime 1.14; 18 is what the custom op needs. The table of
// every version is the same object: its layout is append-only.
constexpr uint32_t kApiVersion = 18;
constexpr int kMaxRuntimes = 16;

// As in OrtApi, without its attributes, which templates warn of.
using CreateSessionFn = OrtStatus* (*)(const OrtEnv*, const ORTCHAR_T*, const OrtSessionOptions*,
                                       OrtSession**) noexcept;
using CreateSessionFromArrayFn = OrtStatus* (*)(const OrtEnv*, const void*, size_t, const OrtSessionOptions*,
                                                OrtSession**) noexcept;

// Set in the options that a replacement passes on. Where two copies of this addon are loaded, one calls the
// other, which must not register the libraries again.
constexpr const char* kRegisteredEntry = "custom_ops.registered";

// What an entry of the table held before. Kept once it is there: another thread may be inside a replacement.
template <typename Fn>
struct Original {
  std::atomic<Fn> function{nullptr};
  bool replaced = false;  // a call through the table comes to our replacement, directly or through somebody's
};

// One copy of ONNX Runtime. A replacement knows its copy by the slot that it was compiled for, since its
// arguments do not say.
struct Slot {
  const OrtApi* api = nullptr;
  Original<CreateSessionFn> create;
  Original<CreateSessionFromArrayFn> create_from_array;
};

std::mutex g_mutex;
std::array<Slot, kMaxRuntimes> g_slots;

// One thread at a time makes a runtime's first session with some libraries: see MakeDomainsKnown.
std::mutex g_domains_mutex;
std::array<std::set<std::string>, kMaxRuntimes> g_known_libraries;  // by slot: entries

// y = Identity(x), opset 17.
constexpr unsigned char kTinyModel[] = {
    0x08, 0x08, 0x3a, 0x3a, 0x0a, 0x10, 0x0a, 0x01, 0x78, 0x12, 0x01, 0x79, 0x22, 0x08, 0x49, 0x64, 0x65,
    0x6e, 0x74, 0x69, 0x74, 0x79, 0x12, 0x04, 0x74, 0x65, 0x73, 0x74, 0x5a, 0x0f, 0x0a, 0x01, 0x78, 0x12,
    0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x62, 0x0f, 0x0a, 0x01, 0x79, 0x12,
    0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x11};

OrtStatus* RegisterLibraries(const OrtApi& api, const std::string& entry, OrtSessionOptions* options) {
  for (size_t begin = 0; begin < entry.size();) {
    const size_t end = std::min(entry.find('\n', begin), entry.size());
    const std::string path = entry.substr(begin, end - begin);
    begin = end + 1;
    if (path.empty()) continue;
    if (OrtStatus* status = api.RegisterCustomOpsLibrary_V2(options, path.c_str())) {
      const std::string message =
          "custom-op library '" + path + "' could not be registered: " + api.GetErrorMessage(status) +
          ". It must be a shared library for this platform that exports RegisterCustomOps.";
      const OrtErrorCode code = api.GetErrorCode(status);
      api.ReleaseStatus(status);
      return api.CreateStatus(code, message.c_str());
    }
  }
  return nullptr;
}

// The first session with a custom-op domain adds it to a list of the whole process, and ONNX Runtime does not
// guard the list: of two threads that create their first session at once, one fails with "domain is already
// exist". So a session of a tiny model adds the domains before, one thread at a time; the sessions
// themselves, which may take long, are created in parallel. What fails here fails again, and is reported, in
// the session that was asked for.
void MakeDomainsKnown(int slot, const std::string& entry, const OrtEnv* env) {
  const std::lock_guard lock(g_domains_mutex);
  std::set<std::string>& known = g_known_libraries[slot];
  if (known.count(entry) != 0) return;
  const OrtApi& api = *g_slots[slot].api;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtStatus* status = api.CreateSessionOptions(&options);
  if (status == nullptr) status = api.SetIntraOpNumThreads(options, 1);
  if (status == nullptr) status = RegisterLibraries(api, entry, options);
  if (status == nullptr)
    status = g_slots[slot].create_from_array.function.load()(env, kTinyModel, sizeof kTinyModel, options,
                                                             &session);
  if (session != nullptr) api.ReleaseSession(session);
  if (options != nullptr) api.ReleaseSessionOptions(options);
  if (status != nullptr)
    api.ReleaseStatus(status);
  else
    known.insert(entry);
}

// Session options with the libraries of the config entry registered; `*owned` is null where the entry is
// absent.
OrtStatus* PrepareOptions(int slot, const OrtEnv* env, const OrtSessionOptions* options,
                          OrtSessionOptions** owned) {
  const OrtApi& api = *g_slots[slot].api;
  *owned = nullptr;
  if (options == nullptr) return nullptr;
  int present = 0;
  if (OrtStatus* status = api.HasSessionConfigEntry(options, kLibrariesEntry, &present)) return status;
  if (!present) return nullptr;
  if (OrtStatus* status = api.HasSessionConfigEntry(options, kRegisteredEntry, &present)) return status;
  if (present) return nullptr;
  size_t size = 0;
  if (OrtStatus* status = api.GetSessionConfigEntry(options, kLibrariesEntry, nullptr, &size)) return status;
  std::string value(size, '\0');
  if (OrtStatus* status = api.GetSessionConfigEntry(options, kLibrariesEntry, value.data(), &size))
    return status;
  value.resize(size == 0 ? 0 : size - 1);  // the size counts the terminating zero
  if (OrtStatus* status = api.CloneSessionOptions(options, owned)) return status;
  MakeDomainsKnown(slot, value, env);
  OrtStatus* status = api.AddSessionConfigEntry(*owned, kRegisteredEntry, "1");
  if (status == nullptr) status = RegisterLibraries(api, value, *owned);
  if (status != nullptr) {
    api.ReleaseSessionOptions(*owned);
    *owned = nullptr;
  }
  return status;
}

// Calls create(options) with the libraries registered; nothing may throw into ONNX Runtime's caller.
template <typename Create>
OrtStatus* WithLibraries(int slot, const OrtEnv* env, const OrtSessionOptions* options,
                         const Create& create) noexcept {
  const OrtApi& api = *g_slots[slot].api;
  OrtSessionOptions* owned = nullptr;
  OrtStatus* status = nullptr;
  try {
    status = PrepareOptions(slot, env, options, &owned);
  } catch (const std::exception& e) {
    if (owned != nullptr) api.ReleaseSessionOptions(owned);
    return api.CreateStatus(ORT_FAIL, e.what());
  }
  if (status != nullptr) return status;
  status = create(owned != nullptr ? owned : options);
  if (owned != nullptr) api.ReleaseSessionOptions(owned);
  return status;
}

template <int kSlot>
OrtStatus* ORT_API_CALL CreateSession(const OrtEnv* env, const ORTCHAR_T* path,
                                      const OrtSessionOptions* options, OrtSession** session) noexcept {
  return WithLibraries(kSlot, env, options, [&](const OrtSessionOptions* o) {
    return g_slots[kSlot].create.function.load()(env, path, o, session);
  });
}

template <int kSlot>
OrtStatus* ORT_API_CALL CreateSessionFromArray(const OrtEnv* env, const void* data, size_t length,
                                               const OrtSessionOptions* options,
                                               OrtSession** session) noexcept {
  return WithLibraries(kSlot, env, options, [&](const OrtSessionOptions* o) {
    return g_slots[kSlot].create_from_array.function.load()(env, data, length, o, session);
  });
}

struct Replacement {
  CreateSessionFn create;
  CreateSessionFromArrayFn create_from_array;
};

template <int... kSlots>
constexpr std::array<Replacement, sizeof...(kSlots)> MakeReplacements(std::integer_sequence<int, kSlots...>) {
  return {Replacement{CreateSession<kSlots>, CreateSessionFromArray<kSlots>}...};
}
constexpr auto kReplacements = MakeReplacements(std::make_integer_sequence<int, kMaxRuntimes>{});

// Protection of the mapping that holds `address`, as PROT_ flags; -1 if it is in none.
int ProtectionOf(uintptr_t address) {
  FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) return -1;
  char line[1024];
  int protection = -1;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    unsigned long begin = 0, end = 0;
    char flags[5] = {};
    if (std::sscanf(line, "%lx-%lx %4s", &begin, &end, flags) != 3 || address < begin || address >= end)
      continue;
    protection = (flags[0] == 'r' ? PROT_READ : 0) | (flags[1] == 'w' ? PROT_WRITE : 0) |
                 (flags[2] == 'x' ? PROT_EXEC : 0);
    break;
  }
  std::fclose(maps);
  return protection;
}

// Writes one pointer into a table that is read-only after relocation. The store is atomic: other threads may
// be calling through the entry.
template <typename Fn>
bool WriteEntry(const Fn& entry, Fn value, std::string* problem) {
  const auto address = reinterpret_cast<uintptr_t>(&entry);
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  void* start =
      reinterpret_cast<void*>(address / page * page);  // a pointer never straddles pages: it is aligned
  const int protection = ProtectionOf(address);
  const bool writable = protection >= 0 && (protection & PROT_WRITE) != 0;
  if (!writable && (protection < 0 || mprotect(start, page, protection | PROT_WRITE) != 0)) {
    *problem = std::string("cannot make ONNX Runtime's function table writable: ") + std::strerror(errno);
    return false;
  }
  __atomic_store_n(const_cast<Fn*>(&entry), value, __ATOMIC_SEQ_CST);
  if (!writable) mprotect(start, page, protection);
  return true;
}

// Puts `ours` into an entry of the table, once. Whoever replaced the entry after us calls us, as we call whom
// we replaced; to go in front of them as well would close a circle.
template <typename Fn>
bool Replace(const Fn& entry, Fn ours, Original<Fn>* original, std::string* problem) {
  if (original->replaced) return true;
  original->function = entry;
  original->replaced = WriteEntry(entry, ours, problem);
  return original->replaced;
}

// Puts the original back, unless somebody has replaced ours since then: the entry is theirs.
template <typename Fn>
bool Restore(const Fn& entry, Fn ours, Original<Fn>* original) {
  std::string problem;
  if (!original->replaced || entry != ours || !WriteEntry(entry, original->function.load(), &problem))
    return false;
  original->replaced = false;
  return true;
}

// The table of a loaded copy; the copy is pinned, because its table now points here, and this addon is
// pinned, because the table points here: a worker thread unloads what it loaded when it ends.
const OrtApi* ApiOf(const std::string& path, std::string* version, std::string* problem) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  if (library == nullptr) {
    *problem = "not loaded under this path";
    return nullptr;
  }
  const auto get_base = reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(library, "OrtGetApiBase"));
  const OrtApi* api = nullptr;
  if (get_base == nullptr) {
    *problem = "has no OrtGetApiBase";
  } else {
    *version = get_base()->GetVersionString();
    api = get_base()->GetApi(kApiVersion);
    if (api == nullptr) *problem = "is older than ONNX Runtime 1." + std::to_string(kApiVersion);
  }
  dlclose(library);
  return api;
}

void PinThisAddon() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&PinThisAddon), &info) == 0) return;
  if (void* self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE)) dlclose(self);
}

std::vector<std::string> LoadedRuntimes() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const char* name = std::strrchr(info->dlpi_name, '/');
        if (name != nullptr && std::strncmp(name, "/libonnxruntime.so", 18) == 0)
          static_cast<std::vector<std::string>*>(out)->emplace_back(info->dlpi_name);
        return 0;
      },
      &paths);
  return paths;
}

bool Hook(const OrtApi* api, std::string* problem) {
  int index = -1;
  for (int i = 0; i < kMaxRuntimes; ++i) {
    if (g_slots[i].api == api) index = i;
    if (g_slots[i].api == nullptr && index < 0) index = i;
  }
  if (index < 0) {
    *problem = "more than " + std::to_string(kMaxRuntimes) + " copies of ONNX Runtime are loaded";
    return false;
  }
  const Replacement& ours = kReplacements[index];
  Slot& slot = g_slots[index];
  slot.api = api;
  // This one first: making domains known, which both replacements do, calls its original.
  return Replace(api->CreateSessionFromArray, ours.create_from_array, &slot.create_from_array, problem) &&
         Replace(api->CreateSession, ours.create, &slot.create, problem);
}

}  // namespace

std::vector<Runtime> Install() {
  const std::lock_guard lock(g_mutex);
  PinThisAddon();
  std::vector<Runtime> result;
  for (const std::string& path : LoadedRuntimes()) {
    Runtime runtime{path, "", false, ""};
    const OrtApi* api = ApiOf(path, &runtime.version, &runtime.problem);
    runtime.hooked = api != nullptr && Hook(api, &runtime.problem);
    result.push_back(std::move(runtime));
  }
  return result;
}

int Uninstall() {
  const std::lock_guard lock(g_mutex);
  int count = 0;
  for (int i = 0; i < kMaxRuntimes; ++i) {
    Slot& slot = g_slots[i];
    if (slot.api == nullptr) continue;
    const Replacement& ours = kReplacements[i];
    const bool path = Restore(slot.api->CreateSession, ours.create, &slot.create);
    const bool array =
        Restore(slot.api->CreateSessionFromArray, ours.create_from_array, &slot.create_from_array);
    count += path || array ? 1 : 0;
  }
  return count;
}

}  // namespace qkvgemm::session
