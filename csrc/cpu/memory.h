// Large blocks of memory.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sedd {

// Results from this size on are written past the caches, which they would only sweep, and into
// large pages.
constexpr int64_t kLarge = int64_t{16} << 20;

// A large block is fresh memory, and finding its pages one by one can take longer than computing
// what goes there: ask for pages of 2 MiB where the system gives them on request.
inline void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

}  // namespace sedd
