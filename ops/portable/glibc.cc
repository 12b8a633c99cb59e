// Functions of the C library that releases before 2.28 to 2.36 lack and that this code, or the C++ runtime
// that is linked into it, calls. They are hidden in each binary, and take the place of the C library's where
// it has them. The C library's headers of these functions are not included: they may declare them otherwise.
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

extern "C" {

// 2.33; inline functions around __fxstat before. The kernel's struct is the C library's on 64-bit machines.
static_assert(sizeof(long) == 8);
constexpr int kCurrentFolder = -100;  // AT_FDCWD
constexpr int kNoFollow = 0x100;      // AT_SYMLINK_NOFOLLOW

int fstat(int file, void* status) { return static_cast<int>(syscall(SYS_fstat, file, status)); }

int stat(const char* path, void* status) {
  return static_cast<int>(syscall(SYS_newfstatat, kCurrentFolder, path, status, 0));
}

int lstat(const char* path, void* status) {
  return static_cast<int>(syscall(SYS_newfstatat, kCurrentFolder, path, status, kNoFollow));
}

int fstat64(int file, void* status) { return fstat(file, status); }
int stat64(const char* path, void* status) { return stat(path, status); }
int lstat64(const char* path, void* status) { return lstat(path, status); }

// 2.32: true where a process is known to have one thread, so that counters need not be atomic. Nothing is
// known.
char __libc_single_threaded = 0;

// 2.36; for std::random_device. It has no way to fail, and the kernel gives so few bytes always.
uint32_t arc4random() {
  uint32_t value;
  if (getrandom(&value, sizeof value, 0) != sizeof value) std::abort();
  return value;
}

}  // extern "C"
