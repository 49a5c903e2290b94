// Parallel loops over rows.
#pragma once

#include <cstdint>
#include <functional>

namespace sedd {

// Calls body(begin, end) for pieces of [0, count) on at most `threads` threads, one of which is the
// caller's, and returns when all pieces are done. Threads take pieces dynamically, because the cost
// of items differs. `cost` is the number of elements read per item; a small loop runs on the
// caller's thread alone.
void parallel_for(int64_t count, int64_t cost, int threads,
                  const std::function<void(int64_t, int64_t)>& body);

// Selects an OpenMP runtime that the process has already loaded (torch's) by the address of its
// GOMP_parallel, or with 0 the thread pool of this module. With two pools, idle threads of one
// would spin on the cores that the other needs.
void use_openmp(uintptr_t gomp_parallel);
bool uses_openmp();

}  // namespace sedd
