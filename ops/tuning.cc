#include "ops/tuning.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>
#include <thread>

namespace qkvgemm::tuning {
namespace {

// 4 MB hold about ten thousand choices, some thousand models; a longer file is not ours, or grew for years.
constexpr size_t kLongestFile = size_t{4} << 20;
constexpr double kNoise = 0.03;
constexpr int kRounds = 7;
constexpr int kFewestRounds = 3;
constexpr double kMostMicroseconds =
    2e6;  // of kRounds rounds; where they would take longer, kFewestRounds do

std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string Today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  char text[16] = "";
  if (gmtime_r(&now, &utc) != nullptr) std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

// What is written to a key may neither end a field nor want an escape in the file.
std::string Plain(std::string_view text) {
  std::string plain(text);
  for (char& c : plain)
    if (c < ' ' || c > '~' || c == '"' || c == '\\' || c == ';' || c == '=') c = '_';
  return plain;
}

class File {
 public:
  File(const std::string& path, int flags) : handle_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (handle_ >= 0) close(handle_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int handle() const { return handle_; }

 private:
  const int handle_;
};

std::optional<std::string> ReadFile(const std::string& path) {
  // Without waiting for a writer where somebody has put a pipe there.
  const File file(path, O_RDONLY | O_NONBLOCK);
  struct stat status;
  if (file.handle() < 0 || fstat(file.handle(), &status) != 0 || !S_ISREG(status.st_mode) ||
      static_cast<size_t>(status.st_size) > kLongestFile)
    return std::nullopt;
  std::string text(static_cast<size_t>(status.st_size), '\0');
  for (size_t at = 0; at < text.size();) {
    const ssize_t count = read(file.handle(), text.data() + at, text.size() - at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    at += static_cast<size_t>(count);
  }
  return text;
}

bool WriteAll(int handle, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(handle, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    text.remove_prefix(static_cast<size_t>(count));
  }
  return fsync(handle) == 0;
}

// Keeps other processes from writing between the reading and the writing of a file. Of the folder, which
// stays while the file is replaced. Where it cannot be had, or its holder is stopped, an entry that is
// written at the same time may be lost, which is no reason to wait for ever.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder) : folder_(folder, O_RDONLY | O_DIRECTORY) {
    constexpr auto kPause = std::chrono::milliseconds(2);
    for (int attempt = 0; attempt < 500; ++attempt) {
      if (flock(folder_.handle(), LOCK_EX | LOCK_NB) == 0 || (errno != EWOULDBLOCK && errno != EINTR)) return;
      std::this_thread::sleep_for(kPause);
    }
  }

 private:
  const File folder_;
};

// Nobody ever sees a part of it: a file beside takes the text and then the name.
bool ReplaceFile(const std::string& path, std::string_view text) {
  static std::atomic<unsigned> count{0};
  // A process that was killed may have left such a file, and had the same number, as in a container.
  constexpr int kMostAttempts = 16;
  for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
    const std::string beside = path + "." + std::to_string(getpid()) + "." + std::to_string(count++) + ".tmp";
    bool written = false;
    {
      const File file(beside, O_WRONLY | O_CREAT | O_EXCL);
      if (file.handle() < 0 && errno == EEXIST) continue;
      if (file.handle() < 0) return false;
      written = WriteAll(file.handle(), text);
    }
    if (written && std::rename(beside.c_str(), path.c_str()) == 0) return true;
    unlink(beside.c_str());
    return false;
  }
  return false;
}

Entries ReadEntries(const std::string& path) {
  const std::optional<std::string> text = ReadFile(path);
  std::optional<Entries> entries = text ? Read(*text) : std::nullopt;
  return entries ? std::move(*entries) : Entries{};
}

}  // namespace

bool ParseMode(std::string_view text, Mode* mode) {
  if (text == "off")
    *mode = Mode::kOff;
  else if (text == "cached")
    *mode = Mode::kCached;
  else if (text == "on")
    *mode = Mode::kOn;
  else
    return false;
  return true;
}

int64_t RowBucket(int64_t m) {
  constexpr uint64_t kLargest = uint64_t{1} << 62;
  if (m <= 16) return m;
  const auto rows = static_cast<uint64_t>(m);
  return static_cast<int64_t>(rows > kLargest ? kLargest : std::bit_ceil(rows));
}

std::string KeyOf(std::string_view device, const Problem& p, std::string_view packing) {
  static constexpr const char* kTypes[] = {"float32", "float16", "bfloat16", "int8"};
  static constexpr const char* kNorms[] = {"layer_norm", "rms_norm", "none"};
  static constexpr const char* kScales[] = {"none", "columns", "blocks"};
  std::string key = "device=" + Plain(device) + "; library=" QKVGEMM_VERSION;
  const auto add = [&key](const char* name, std::string_view value) {
    key.append("; ").append(name).append("=").append(value);
  };
  add("K", std::to_string(p.k));
  add("N", std::to_string(p.n));
  add("T", kTypes[static_cast<int>(p.t)]);
  add("TW", kTypes[static_cast<int>(p.tw)]);
  add("norm", kNorms[static_cast<int>(p.norm)]);
  add("transposed", p.transposed ? "1" : "0");
  add("activation_quant", p.activation_quant ? "1" : "0");
  add("scale", kScales[static_cast<int>(p.scale_layout)]);
  add("zero_point", p.has_zero_point ? "1" : "0");
  add("splits", std::to_string(p.num_splits));
  add("packing", Plain(packing));
  add("rows", std::to_string(RowBucket(p.m)));
  return key;
}

size_t Fastest(std::span<const std::vector<double>> times, std::vector<double>* medians) {
  medians->clear();
  for (std::vector<double> sorted : times) {
    std::ranges::sort(sorted);
    medians->push_back(sorted[sorted.size() / 2]);
  }
  const auto best = static_cast<size_t>(std::ranges::min_element(*medians) - medians->begin());
  return (*medians)[best] < (*medians)[0] * (1 - kNoise) ? best : 0;
}

std::string DefaultFile() {
  std::string folder = Environment("QKVGEMM_CACHE_DIR");
  if (folder.empty()) {
    // The XDG base directory specification has relative paths ignored.
    std::string base = Environment("XDG_CACHE_HOME");
    if (base.empty() || base.front() != '/')
      base = Environment("HOME").empty() ? "" : Environment("HOME") + "/.cache";
    if (base.empty()) return "";
    folder = base + "/onnx-qkv-gemm";
  }
  return folder + "/tuning.json";
}

Cache::Stamp Cache::StampOf() const {
  struct stat status;
  if (file_.empty() || stat(file_.c_str(), &status) != 0) return {};
  return {static_cast<uint64_t>(status.st_dev), static_cast<uint64_t>(status.st_ino), status.st_size,
          status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

std::optional<Entry> Cache::Find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  if (const auto own = own_.find(key); own != own_.end()) return own->second;
  const Stamp stamp = StampOf();
  if (stamp.size < 0) {
    entries_.clear();
  } else if (!(stamp == stamp_)) {
    entries_ = ReadEntries(file_);
  }
  stamp_ = stamp;
  const auto found = entries_.find(key);
  return found == entries_.end() ? std::nullopt : std::optional(found->second);
}

bool Cache::Keep(const std::string& key, const Entry& entry) {
  const std::lock_guard lock(mutex_);
  bool written = false;
  if (!file_.empty()) {
    const std::string folder = std::filesystem::path(file_).parent_path();
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    const FolderLock folder_lock(folder);
    Entries merged = ReadEntries(file_);
    merged[key] = entry;
    std::string text = Write(merged);
    // What would not be read must not be written: begin anew.
    if (text.size() > kLongestFile) text = Write({{key, entry}});
    written = ReplaceFile(file_, text);
  }
  if (written)
    own_.erase(key);
  else
    own_[key] = entry;
  return written;
}

std::optional<Entry> Cache::FindOrTime(const std::string& key,
                                       const std::function<bool(const Entry&)>& serves,
                                       const std::function<std::optional<Entry>()>& time) {
  const auto find = [&] {
    std::optional<Entry> found = Find(key);
    return found && serves(*found) ? found : std::nullopt;
  };
  if (std::optional<Entry> found = find()) return found;
  const std::lock_guard lock(one_timer_);
  if (std::optional<Entry> found = find()) return found;
  if (failed_.contains(key)) return std::nullopt;
  std::optional<Entry> timed = time();
  if (timed)
    Keep(key, *timed);
  else
    failed_.insert(key);
  return timed;
}

Cache& SharedCache() {
  static auto* const mutex = new std::mutex;
  static auto* const all = new std::map<std::string, std::unique_ptr<Cache>>;
  const std::lock_guard lock(*mutex);
  std::string file = DefaultFile();
  std::unique_ptr<Cache>& cache = (*all)[file];
  if (cache == nullptr) cache = std::make_unique<Cache>(std::move(file));
  return *cache;
}

Entry TimePlans(std::span<const std::string> plans, const std::function<double(size_t)>& run) {
  double warm_up = 0;
  for (size_t i = 0; i < plans.size(); ++i) warm_up += run(i);
  const int rounds = warm_up * kRounds <= kMostMicroseconds ? kRounds : kFewestRounds;
  std::vector<std::vector<double>> times(plans.size());
  for (int round = 0; round < rounds; ++round)
    for (size_t i = 0; i < plans.size(); ++i) times[i].push_back(run(i));
  std::vector<double> medians;
  const size_t best = Fastest(times, &medians);
  return {plans[best], medians[best], plans[0], medians[0], Today()};
}

}  // namespace qkvgemm::tuning
