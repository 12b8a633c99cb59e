// The choices of plans by timing, and their file. Exits 1 if something is not as expected.
#include "ops/tuning.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

using namespace qkvgemm;
using namespace qkvgemm::tuning;
namespace fs = std::filesystem;

namespace {

int failures = 0;

void Expect(bool condition, const std::string& what) {
  if (condition || ++failures > 20) return;
  std::printf("FAIL %s\n", what.c_str());
}

const Entry kEntry{"stream 48x8, rows input", 12.5, "hopper 64x16, rows input", 14.25, "2025-01-31"};

void CheckKeys() {
  for (int64_t m = 0; m <= 16; ++m) Expect(RowBucket(m) == m, "rows up to 16 are exact");
  Expect(RowBucket(17) == 32 && RowBucket(32) == 32 && RowBucket(33) == 64, "then powers of two");
  Expect(RowBucket(INT64_MAX) > 0, "the last bucket is no overflow");
  Problem p;
  p.m = 20, p.k = 64, p.n = 96, p.tw = DType::kInt8;
  const std::string key = KeyOf("A \"device\"; of=it\n", p, "int8");
  Expect(key.starts_with("device=A _device__ of_it_; library="), "a device's name is made plain: " + key);
  Expect(key.find("K=64; N=96; T=float32; TW=int8; norm=layer_norm; ") != std::string::npos, key);
  Expect(key.ends_with("packing=int8; rows=32"), key);
  const auto differs = [&](auto change, const char* what) {
    Problem other = p;
    change(other);
    Expect(KeyOf("d", other, "int8") != KeyOf("d", p, "int8"), what);
  };
  differs([](Problem& o) { o.k = 65; }, "K is in the key");
  differs([](Problem& o) { o.n = 97; }, "N is in the key");
  differs([](Problem& o) { o.m = 40; }, "rows are in the key");
  differs([](Problem& o) { o.t = DType::kFloat16; }, "T is in the key");
  differs([](Problem& o) { o.tw = DType::kFloat16; }, "TW is in the key");
  differs([](Problem& o) { o.norm = NormType::kNone; }, "the norm is in the key");
  differs([](Problem& o) { o.transposed = true; }, "transposed is in the key");
  differs([](Problem& o) { o.activation_quant = true; }, "activation_quant is in the key");
  Expect(KeyOf("d", p, "a") != KeyOf("d", p, "b") && KeyOf("d", p, "a") != KeyOf("e", p, "a"),
         "device and packing are in the key");
}

void CheckModes() {
  Mode mode = Mode::kOff;
  Expect(ParseMode("on", &mode) && mode == Mode::kOn, "on");
  Expect(ParseMode("cached", &mode) && mode == Mode::kCached, "cached");
  Expect(ParseMode("off", &mode) && mode == Mode::kOff, "off");
  Expect(!ParseMode("", &mode) && !ParseMode("1", &mode) && !ParseMode("On", &mode), "nothing else");
}

void CheckFormat() {
  const Entries entries{{"a", kEntry}, {"b", {"p", 0, "p", 0, "2024-12-01"}}};
  const std::string text = Write(entries);
  Expect(Read(text) == entries, "what is written is read: " + text);
  Expect(Read(Write({})) == Entries{}, "no entries are a file too");
  const std::string one = R"({"entries":[{"measured":"2025-01-31","heuristic":{"microseconds":2,"plan":"h"},)"
                          R"("microseconds":1e0,"plan":"p","key":"k"}],"version":1})";
  const Entries expected{{"k", {"p", 1, "h", 2, "2025-01-31"}}};
  Expect(Read(one) == expected, "in any order");
  const auto refused = [&](const std::string& from, const std::string& to) {
    std::string changed = one;
    const size_t at = changed.find(from);
    Expect(at != std::string::npos, "the test's own: " + from);
    changed.replace(at, from.size(), to);
    Expect(!Read(changed), "refused: " + changed);
  };
  refused("\"version\":1", "\"version\":2");
  refused("\"version\":1", "\"version\":\"1\"");
  refused("\"plan\":\"p\"", "\"plan\":1");
  refused("\"plan\":\"p\"", "\"plan\":\"\"");
  refused("\"plan\":\"p\"", "\"plan\":\"\\u0041\"");
  refused("\"plan\":\"p\"", "\"plan\":\"p\",\"plan\":\"p\"");
  refused("\"plan\":\"p\"", "\"plans\":\"p\"");
  refused("\"plan\":\"p\",", "");
  refused("\"microseconds\":1e0", "\"microseconds\":-1");
  refused("\"microseconds\":1e0", "\"microseconds\":nan");
  refused("\"microseconds\":1e0", "\"microseconds\":1e400");
  refused("\"measured\":\"2025-01-31\"", "\"measured\":\"yesterday\"");
  refused("}],", "},],");
  refused("\"version\":1}", "\"version\":1}x");
  Expect(!Read("") && !Read("[]") && !Read("null") && !Read(std::string("\0", 1)), "other texts");
  Expect(!Read("{\"version\":1,\"entries\":[" + std::string(100000, '[')), "deep texts");
  // What cannot be read back is left out, not written.
  Expect(Read(Write({{"a", kEntry}, {"quote\"", kEntry}, {"b", {"p", 1.0 / 0.0, "p", 1, "2025-01-31"}}})) ==
             Entries{{"a", kEntry}},
         "texts that want an escape and times that are no numbers");
}

// Bytes changed, removed, added or cut off: read as something or nothing, within the memory that is there.
// What is read is also written and read as the same.
void CheckDamage(std::mt19937& random) {
  Entries entries;
  for (int i = 0; i < 3; ++i) entries["key " + std::to_string(i)] = kEntry;
  const std::string text = Write(entries);
  long read = 0;
  for (int i = 0; i < 200000; ++i) {
    std::string damaged = text;
    for (unsigned change = 1 + random() % 3; change > 0 && !damaged.empty(); --change) {
      const size_t at = random() % damaged.size();
      switch (random() % 4) {
        case 0:
          damaged[at] = static_cast<char>(random());
          break;
        case 1:
          damaged.erase(at, 1 + random() % 8);
          break;
        case 2:
          damaged.insert(at, 1, "{}[]\",:0-e. "[random() % 12]);
          break;
        default:
          damaged.resize(at);
      }
    }
    // At its very size on the heap, so that a sanitizer sees a byte too far.
    const std::vector<char> exact(damaged.begin(), damaged.end());
    const auto found = Read(std::string_view(exact.data(), exact.size()));
    if (!found) continue;
    ++read;
    const auto again = Read(Write(*found));
    Expect(again && again->size() == found->size(), "what was read can be written");
  }
  Expect(read > 0 && read < 200000, "some damage leaves a file, some does not");
}

void CheckFastest() {
  std::vector<double> medians;
  const std::vector<std::vector<double>> near = {{10, 10, 11}, {9.8, 9.8, 9.8}};
  Expect(Fastest(near, &medians) == 0 && medians == std::vector<double>{10, 9.8}, "2 % are noise");
  const std::vector<std::vector<double>> far = {{10, 10, 1}, {9, 9.5, 100}, {9.4, 9.4, 9.4}};
  Expect(Fastest(far, &medians) == 2, "the median counts, not the least");
  std::vector<size_t> order;
  const std::string plans[] = {"a", "b"};
  const Entry entry = TimePlans(plans, [&](size_t i) {
    order.push_back(i);
    return i == 0 ? 20.0 : 10.0;
  });
  Expect(entry.plan == "b" && entry.heuristic == "a" && entry.microseconds == 10 &&
             entry.heuristic_microseconds == 20 && entry.measured.size() == 10,
         "an entry of a timing");
  for (size_t i = 0; i < order.size(); ++i) Expect(order[i] == i % 2, "the plans run in turn");
}

std::string TextOf(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

void CheckCache(const fs::path& folder) {
  const fs::path file = folder / "deep" / "er" / "tuning.json";
  Cache first(file), second(file);
  Expect(!first.Find("a") && !fs::exists(file), "nothing is there, and nothing is made by looking");
  fs::create_directories(file.parent_path());
  for (int i = 0; i < 8; ++i)
    std::ofstream(file.string() + "." + std::to_string(getpid()) + "." + std::to_string(i) + ".tmp") << "x";
  Expect(first.Keep("a", kEntry) && second.Find("a") == kEntry,
         "another cache finds it, whatever lies beside");
  for (int i = 0; i < 8; ++i)
    fs::remove(file.string() + "." + std::to_string(getpid()) + "." + std::to_string(i) + ".tmp");
  Expect(second.Keep("b", kEntry), "kept");
  Expect(first.Find("b") == kEntry && Cache(file).Find("a") == kEntry, "what others wrote is kept");
  for (const char* damage : {"", "{", "{\"version\":2,\"entries\":[]}"}) {
    std::ofstream(file) << damage;
    Cache fresh(file);
    Expect(!fresh.Find("a"), "a damaged file is empty");
    Expect(fresh.Keep("c", kEntry) && Cache(file).Find("c") == kEntry, "and is replaced");
  }
  std::ofstream(file) << Write({{"a", kEntry}}) << std::string(size_t{5} << 20, ' ');
  Expect(!Cache(file).Find("a"), "a file beyond all measure is not read");
  Entries many;
  const size_t entry_bytes = Write({{"key 0000000", kEntry}, {"key 0000001", kEntry}}).size() -
                             Write({{"key 0000000", kEntry}}).size();
  for (size_t i = 0; (i + 2) * entry_bytes < size_t{4} << 20; ++i)
    many["key " + std::to_string(1000000 + i)] = kEntry;
  std::ofstream(file) << Write(many);
  Expect(Cache(file).Find("key 1000000") == kEntry, "a file that is nearly full is read");
  for (const char* key : {"one more", "two more", "three more", "four more"})
    Expect(Cache(file).Keep(key, kEntry) && Cache(file).Find(key) == kEntry, "a full file begins anew");
  Expect(!Cache(file).Find("key 1000000"), "without what it held");
  fs::remove(file);
  fs::create_directory(file);
  Expect(!Cache(file).Find("a") && !Cache(file).Keep("a", kEntry), "a folder in its place");
  fs::remove(file);
  Expect(mkfifo(file.c_str(), 0600) == 0 && !Cache(file).Find("a"), "a pipe in its place does not block");
  fs::remove(file);
  // What cannot be written stays with the process. (Where no folder can be made, for root as for anybody.)
  std::ofstream(folder / "plain") << "x";
  Cache unwritable(folder / "plain" / "tuning.json"), nowhere("");
  for (Cache* cache : {&unwritable, &nowhere})
    Expect(!cache->Keep("a", kEntry) && cache->Find("a") == kEntry, "kept in memory");
  for (const auto& left : fs::recursive_directory_iterator(folder))
    Expect(left.path().extension() != ".tmp", "nothing is left beside: " + left.path().string());
}

// Threads and processes that write at once while one reads: every state of the file is a whole one.
void CheckAtOnce(const fs::path& folder) {
  const fs::path file = folder / "tuning.json";
  Cache(file).Keep("first", kEntry);
  int children[3];
  for (int c = 0; c < 3; ++c) {
    children[c] = fork();
    if (children[c] != 0) continue;
    Cache cache(file);
    for (int i = 0; i < 50; ++i) cache.Keep("child " + std::to_string(c) + " " + std::to_string(i), kEntry);
    _exit(0);
  }
  for (int i = 0; i < 2000; ++i) {
    const auto found = Read(TextOf(file));
    Expect(found && found->count("first") == 1, "half a file");
  }
  for (const int child : children) {
    int status = 1;
    waitpid(child, &status, 0);
    Expect(status == 0, "a writer's end");
  }
  const auto all = Read(TextOf(file));
  Expect(all && all->size() == 151, "each writer's entries are kept");
  const auto any = [](const Entry&) { return true; };
  Cache cache(file);
  int timed = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      const auto found = cache.FindOrTime("once", any, [&]() -> std::optional<Entry> {
        ++timed;
        return kEntry;
      });
      if (!found) std::abort();
    });
  for (std::thread& thread : threads) thread.join();
  Expect(timed == 1, "one thread times a key");
  const auto nothing = [&]() -> std::optional<Entry> {
    ++timed;
    return std::nullopt;
  };
  for (int i = 0; i < 2; ++i)
    Expect(!cache.FindOrTime("never", any, nothing) && !cache.Find("never"), "nothing found is not kept");
  Expect(timed == 2, "and not tried again");
  Entry other = kEntry;
  other.plan = "better";
  const auto better = [&](const Entry& entry) { return entry.plan == "better"; };
  Expect(cache.FindOrTime("first", better, [&] { return std::optional(other); }) == other &&
             Cache(file).Find("first") == other,
         "a plan that does not serve is replaced");
}

void CheckPlaces() {
  setenv("QKVGEMM_CACHE_DIR", "/given", 1);
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  setenv("HOME", "/home/one", 1);
  Expect(DefaultFile() == "/given/tuning.json", "QKVGEMM_CACHE_DIR comes first");
  Cache& given = SharedCache();
  unsetenv("QKVGEMM_CACHE_DIR");
  Expect(DefaultFile() == "/xdg/onnx-qkv-gemm/tuning.json", "then XDG_CACHE_HOME");
  Expect(&SharedCache() != &given, "another place is another cache");
  setenv("XDG_CACHE_HOME", "relative", 1);
  Expect(DefaultFile() == "/home/one/.cache/onnx-qkv-gemm/tuning.json", "then the home");
  unsetenv("HOME");
  Expect(DefaultFile().empty(), "or none");
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(std::stoul(argv[1])) : std::random_device{}();
  std::printf("seed %u (pass it as the argument to repeat)\n", seed);
  std::mt19937 random(seed);
  CheckKeys();
  CheckModes();
  CheckFormat();
  CheckDamage(random);
  CheckFastest();
  std::string folder = (fs::temp_directory_path() / "qkvgemm-tuning-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return 1;
  CheckCache(folder);
  CheckAtOnce(folder);
  fs::remove_all(folder);
  CheckPlaces();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
