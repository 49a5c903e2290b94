// How large results are stored.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sedd {

// Bytes from which on a result is stored past the caches, whose content it would only replace, and
// into large pages.
constexpr int64_t kLarge = int64_t{16} << 20;

// The pages of a large new block are mapped at their first use. One by one, that can take longer
// than computing the result, so pages of 2 MiB are requested where the system offers them.
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
