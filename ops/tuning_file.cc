// The file's format: JSON of one fixed shape.
//
//   {"version": 1, "entries": [{"key": "...", "plan": "...", "microseconds": 1.5,
//     "heuristic": {"plan": "...", "microseconds": 2}, "measured": "2025-01-31"}]}
#include <charconv>
#include <cmath>
#include <cstdio>
#include <string>

#include "ops/tuning.h"

namespace qkvgemm::tuning {
namespace {

constexpr double kVersion = 1;
constexpr size_t kLongestText = 1024;  // of a key or a plan
constexpr double kLongestTime = 1e9;   // microseconds

// Keys, plans and dates are printable ASCII without what JSON escapes, so that there are no escapes to read.
bool IsPlain(std::string_view text) {
  if (text.empty() || text.size() > kLongestText) return false;
  for (const char c : text)
    if (c < ' ' || c > '~' || c == '"' || c == '\\') return false;
  return true;
}

// Reads what it is told to expect, and fails for good at the first thing that is not that.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool ok() const { return ok_; }
  bool AtEnd() {
    SkipSpace();
    return ok_ && at_ == text_.size();
  }
  bool Take(char c) {
    SkipSpace();
    if (!ok_ || at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void Expect(char c) { ok_ = Take(c) && ok_; }
  std::string Text() {
    Expect('"');
    const size_t end = ok_ ? text_.find('"', at_) : std::string_view::npos;
    if (end == std::string_view::npos || !IsPlain(text_.substr(at_, end - at_))) return Fail(std::string());
    const std::string found(text_.substr(at_, end - at_));
    at_ = end + 1;
    return found;
  }
  double Number() {
    SkipSpace();
    double value = 0;
    // from_chars takes "inf" and "nan" besides, and JSON neither.
    if (!ok_ || at_ == text_.size() || text_[at_] < '0' || text_[at_] > '9') return Fail(0.0);
    const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    if (error != std::errc() || !(value >= 0 && value <= kLongestTime)) return Fail(0.0);
    at_ = static_cast<size_t>(end - text_.data());
    return value;
  }
  // {"name": value, ...} with each of `names` once; member(i) reads the value of names[i].
  template <size_t kCount, typename Member>
  void Object(const char* const (&names)[kCount], const Member& member) {
    unsigned seen = 0;
    Expect('{');
    for (size_t n = 0; ok_ && n < kCount; ++n) {
      if (n > 0) Expect(',');
      const std::string name = Text();
      Expect(':');
      size_t i = 0;
      while (i < kCount && name != names[i]) ++i;
      if (i == kCount || (seen & 1u << i) != 0) ok_ = false;
      if (!ok_) return;
      seen |= 1u << i;
      member(i);
    }
    Expect('}');
  }
  template <typename Item>
  void Array(const Item& item) {
    Expect('[');
    if (Take(']')) return;
    do {
      item();
    } while (ok_ && Take(','));
    Expect(']');
  }
  void Require(bool condition) { ok_ = ok_ && condition; }

 private:
  template <typename T>
  T Fail(T value) {
    ok_ = false;
    return value;
  }
  void SkipSpace() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }

  std::string_view text_;
  size_t at_ = 0;
  bool ok_ = true;
};

bool IsDate(std::string_view text) {
  if (text.size() != 10) return false;
  for (size_t i = 0; i < text.size(); ++i)
    if (i == 4 || i == 7 ? text[i] != '-' : text[i] < '0' || text[i] > '9') return false;
  return true;
}

void ReadEntry(Reader& reader, Entries* entries) {
  std::string key;
  Entry entry;
  reader.Object({"key", "plan", "microseconds", "heuristic", "measured"}, [&](size_t i) {
    if (i == 0) key = reader.Text();
    if (i == 1) entry.plan = reader.Text();
    if (i == 2) entry.microseconds = reader.Number();
    if (i == 3) {
      reader.Object({"plan", "microseconds"}, [&](size_t member) {
        if (member == 0) entry.heuristic = reader.Text();
        if (member == 1) entry.heuristic_microseconds = reader.Number();
      });
    }
    if (i == 4) entry.measured = reader.Text();
  });
  reader.Require(IsDate(entry.measured));
  if (reader.ok()) reader.Require(entries->emplace(key, entry).second);
}

std::string NumberText(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", value);
  return text;
}

}  // namespace

std::string Write(const Entries& entries) {
  std::string text = "{\n  \"version\": 1,\n  \"entries\": [";
  bool first = true;
  for (const auto& [key, entry] : entries) {
    const bool finite = entry.microseconds >= 0 && entry.microseconds <= kLongestTime &&
                        entry.heuristic_microseconds >= 0 && entry.heuristic_microseconds <= kLongestTime;
    if (!IsPlain(key) || !IsPlain(entry.plan) || !IsPlain(entry.heuristic) || !IsDate(entry.measured) ||
        !finite)
      continue;
    text += first ? "\n" : ",\n";
    first = false;
    text += "    {\n      \"key\": \"" + key + "\",\n      \"plan\": \"" + entry.plan +
            "\",\n      \"microseconds\": " + NumberText(entry.microseconds) +
            ",\n      \"heuristic\": { \"plan\": \"" + entry.heuristic +
            "\", \"microseconds\": " + NumberText(entry.heuristic_microseconds) +
            " },\n      \"measured\": \"" + entry.measured + "\"\n    }";
  }
  return text + (first ? "]\n}\n" : "\n  ]\n}\n");
}

std::optional<Entries> Read(std::string_view text) {
  Reader reader(text);
  Entries entries;
  reader.Object({"version", "entries"}, [&](size_t i) {
    if (i == 0) reader.Require(reader.Number() == kVersion);
    if (i == 1) reader.Array([&] { ReadEntry(reader, &entries); });
  });
  if (!reader.AtEnd()) return std::nullopt;
  return entries;
}

}  // namespace qkvgemm::tuning
