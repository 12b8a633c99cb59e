#include "ops/file_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace qkvgemm {
namespace {

// Whether each of these pages is there, and is one that the system would read from a file again: not one of a
// private mapping that was written to, which is this process's alone and would be lost. (Linux,
// Documentation/admin-guide/mm/pagemap.rst.) One that is not there may be of anything.
bool AreOfFiles(int pagemap, uintptr_t first_page, size_t pages) {
  constexpr uint64_t kPresent = uint64_t{1} << 63, kOfFile = uint64_t{1} << 61;
  std::array<uint64_t, 512> entries;
  for (size_t i = 0; i < pages;) {
    const size_t count = std::min(pages - i, entries.size());
    const auto bytes = static_cast<ssize_t>(count * sizeof(uint64_t));
    if (pread(pagemap, entries.data(), static_cast<size_t>(bytes),
              static_cast<off_t>((first_page + i) * sizeof(uint64_t))) != bytes)
      return false;
    for (size_t e = 0; e < count; ++e)
      if ((entries[e] & kPresent) == 0 || (entries[e] & kOfFile) == 0) return false;
    i += count;
  }
  return true;
}

}  // namespace

void ReleaseFilePages(const void* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(std::max(sysconf(_SC_PAGESIZE), 1L));
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page, last = (begin + bytes) / page;
  if (first >= last) return;
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return;
  if (AreOfFiles(pagemap, first, last - first))
    madvise(reinterpret_cast<void*>(first * page), (last - first) * page, MADV_DONTNEED);
  close(pagemap);
}

}  // namespace qkvgemm
