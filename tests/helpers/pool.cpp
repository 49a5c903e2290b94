// Parallel loops of csrc/cpu/parallel.cpp on its own threads, for ThreadSanitizer: several callers
// at a time, numbers of threads that change, exceptions, and a forked child.
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "cpu/parallel.h"

namespace {

// Every item of a loop is visited once, by plain writes that a race would show in.
bool visits_all(int64_t count, int threads) {
  std::vector<int> visits(count, 0);
  sedd::parallel_for(count, 1 << 14, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++visits[i];
  });
  for (const int n : visits) {
    if (n != 1) return false;
  }
  return true;
}

bool rethrows(int threads) {
  try {
    sedd::parallel_for(200, 1 << 14, threads, [](int64_t begin, int64_t) {
      if (begin >= 50) throw std::runtime_error("an item failed");
    });
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  std::atomic<bool> good{true};
  const auto caller = [&](int first) {
    for (int i = 0; i < 200; ++i) {
      if (!visits_all(1 + (first * 37 + i) % 300, 1 + (first + i) % 5)) good = false;
      if (i % 20 == 0 && !rethrows(4)) good = false;
    }
  };
  caller(0);
  std::vector<std::thread> callers;
  for (int n = 1; n < 5; ++n) callers.emplace_back(caller, n);
  for (std::thread& one : callers) one.join();
  // A child has none of the threads of its parent.
  const pid_t child = fork();
  if (child == 0) _exit(visits_all(300, 1) ? 0 : 1);
  int status = 1;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) good = false;
  std::puts(good ? "thread pool: every item once" : "thread pool: WRONG");
  return good ? 0 : 1;
}
