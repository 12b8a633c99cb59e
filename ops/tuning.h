// Plans found by timing, and the file that keeps them. Without it plans come from estimates alone. Knows
// neither ONNX Runtime nor CUDA: providers say what their plans are called and how one is timed.
//
// Nothing here fails a run: a file that is absent, too long, of another version or not what was written is
// taken for empty, and one that cannot be written leaves what was found to this process.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/problem.h"

namespace qkvgemm::tuning {

enum class Mode : uint8_t {
  kOff,     // estimates alone; no file is read
  kCached,  // what was found before, else estimates; nothing is timed
  kOn,      // what was not found before is timed, and kept
};

// "off", "cached" or "on"; false for anything else.
bool ParseMode(std::string_view text, Mode* mode);

struct Entry {
  std::string plan;
  double microseconds = 0;
  std::string heuristic;  // what is estimated to be fastest, and how long it took
  double heuristic_microseconds = 0;
  std::string measured;  // date, YYYY-MM-DD

  friend bool operator==(const Entry&, const Entry&) = default;
};
using Entries = std::map<std::string, Entry, std::less<>>;

// The rows for which one plan is kept: exact up to 16, then the next power of two.
int64_t RowBucket(int64_t m);

// What a choice depends on, as "name=value; ..."; `device` and `packing` are the provider's words.
std::string KeyOf(std::string_view device, const Problem& problem, std::string_view packing);

// The text of a file, and back; nothing where the text is not one that Write makes, in any order of members
// and with any white space. Entries with unknown members are refused with their file.
std::string Write(const Entries& entries);
std::optional<Entries> Read(std::string_view text);

// Index of the fastest by the median of its times; the first, which is the estimate's, stays unless another
// needs 3 % less. `times`: by plan, the same number each, none empty.
size_t Fastest(std::span<const std::vector<double>> times, std::vector<double>* medians);

// Where the file is: QKVGEMM_CACHE_DIR, else onnx-qkv-gemm in XDG_CACHE_HOME, else in ~/.cache; empty where
// none of them is set.
std::string DefaultFile();

// A file of choices, shared by the threads of this process. Other processes may read and write it at once: it
// is replaced as a whole, and what they wrote meanwhile is kept.
class Cache {
 public:
  explicit Cache(std::string file) : file_(std::move(file)) {}

  std::optional<Entry> Find(const std::string& key);
  // False where the file could not be written; the entry is then kept in memory.
  bool Keep(const std::string& key, const Entry& entry);
  // The choice for a key where there is one that `serves`, else what `time` finds, by one thread at a time.
  // Where it finds nothing it is not asked again.
  std::optional<Entry> FindOrTime(const std::string& key, const std::function<bool(const Entry&)>& serves,
                                  const std::function<std::optional<Entry>()>& time);

 private:
  struct Stamp {
    uint64_t device = 0, node = 0;
    int64_t size = -1, seconds = 0, nanoseconds = 0;
    friend bool operator==(const Stamp&, const Stamp&) = default;
  };
  Stamp StampOf() const;

  const std::string file_;
  std::mutex mutex_;
  Stamp stamp_;      // of what `entries_` were read from
  Entries entries_;  // the file's
  Entries own_;      // timed by this process, where the file did not take them
  std::set<std::string> failed_;
  std::mutex one_timer_;  // timings at once would disturb each other
};

// The cache at DefaultFile(), which is asked for anew in each call.
Cache& SharedCache();

// An entry of a timing. `run(i)` runs plan i once and returns its microseconds. Runs each plan once to warm
// up, then all of them in turn, round after round.
Entry TimePlans(std::span<const std::string> plans, const std::function<double(size_t)>& run);

}  // namespace qkvgemm::tuning
