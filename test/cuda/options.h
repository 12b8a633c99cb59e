// The arguments of qkvgemm_cuda_test.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace qkvgemm::support {

struct Options {
  bool list = false, quick = false, once = false, verbose = false;
  std::string filter;
  int threads = 4;
  unsigned part = 0, parts = 1;
  unsigned seed = std::random_device{}();
};

// False, and says so, where an argument is unknown.
inline bool Parse(int argc, char** argv, Options* o) {
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    const bool more = i + 1 < argc;
    if (a == "--list") {
      o->list = true;
    } else if (a == "--quick") {
      o->quick = true, o->threads = 1;
    } else if (a == "--once") {
      o->once = true;
    } else if (a == "--verbose") {
      o->verbose = true;
    } else if (a == "--filter" && more) {
      o->filter = argv[++i];
    } else if (a == "--part" && more && std::sscanf(argv[i + 1], "%u/%u", &o->part, &o->parts) == 2 &&
               o->part < o->parts) {
      ++i;
    } else if (a == "--threads" && more) {
      o->threads = std::max(1, std::atoi(argv[++i]));
    } else if (a == "--seed" && more) {
      o->seed = static_cast<unsigned>(std::strtoul(argv[++i], nullptr, 10));
    } else if (!a.empty() && a.find_first_not_of("0123456789") == std::string::npos) {
      o->seed = static_cast<unsigned>(std::strtoul(a.c_str(), nullptr, 10));
    } else {
      std::printf(
          "unknown or incomplete argument '%s'; usage: %s [--list] [--filter SUBSTRING] [--part I/N] "
          "[--quick] [--once] [--threads N] [--verbose] [--seed N | SEED]\n",
          a.c_str(), argv[0]);
      return false;
    }
  }
  return true;
}

}  // namespace qkvgemm::support
