// Rows shared out among threads.
#pragma once

#include <cstdint>
#include <functional>

namespace sedd {

// Calls body(begin, end) on pieces of [0, count) from at most `threads` threads, the caller's among
// them, and returns when all are done. Pieces are taken as threads come free: items cost unequally.
// `cost` is that of an item in elements read; little work stays on the caller's thread.
void parallel_for(int64_t count, int64_t cost, int threads,
                  const std::function<void(int64_t, int64_t)>& body);

// Use an OpenMP runtime that is already in the process (torch's): the address of its GOMP_parallel,
// or 0 for the pool of our own. Two runtimes spin against each other for the same cores.
void use_openmp(uintptr_t gomp_parallel);
bool uses_openmp();

}  // namespace sedd
