#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <pthread.h>

namespace sedd {
namespace {

constexpr int64_t kMinWork = 1 << 16;   // elements per thread: about the cost of waking one
constexpr int64_t kMinPiece = 1 << 14;  // elements per piece: far above the cost of taking one

struct Job {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t count, piece;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;  // the first one, rethrown on the caller's thread

  void work() noexcept {
    try {
      for (int64_t begin; (begin = next.fetch_add(piece)) < count;) {
        (*body)(begin, std::min(begin + piece, count));
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      next = count;
    }
  }
};

// Threads that sleep between jobs. It runs one job at a time; a second concurrent caller runs its
// job on its own thread only.
class Pool {
 public:
  void run(Job& job, int threads) {
    std::unique_lock<std::mutex> busy(callers_, std::try_to_lock);
    if (busy) start(job, threads - 1);
    job.work();
    if (busy) finish();
  }

  // A forked child does not have the threads of its parent.
  void forget_threads() { new (this) Pool; }

 private:
  void start(Job& job, int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (; size_ < count; ++size_) std::thread([this, id = size_] { loop(id); }).detach();
    } catch (const std::system_error&) {  // no more threads available: use the existing ones
    }
    job_ = &job;
    wanted_ = count;
    ++generation_;
    wake_.notify_all();
  }

  void finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a thread that wakes up from now on finds no work
    done_.wait(lock, [this] { return working_ == 0; });
  }

  void loop(int id) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      Job* job = job_;
      if (!job || id >= wanted_) continue;
      ++working_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int size_ = 0, wanted_ = 0, working_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed, because its threads outlive static destructors.
Pool& pool() {
  static Pool* instance = [] {
    static Pool* made = new Pool;
    pthread_atfork(nullptr, nullptr, [] { made->forget_threads(); });
    return made;
  }();
  return *instance;
}

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp_parallel{nullptr};

}  // namespace

bool uses_openmp() { return gomp_parallel != nullptr; }
void use_openmp(uintptr_t address) { gomp_parallel = reinterpret_cast<GompParallel>(address); }

void parallel_for(int64_t count, int64_t cost, int threads,
                  const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  threads = static_cast<int>(std::min<int64_t>({threads, count, count * cost / kMinWork}));
  if (threads <= 1) return body(0, count);
  Job job;
  job.body = &body;
  job.count = count;
  // Small pieces: the costs of items differ, and at the end threads wait for the last piece.
  job.piece =
      std::max<int64_t>(1, std::min(kMinPiece / std::max<int64_t>(1, cost), count / threads));
  if (const GompParallel parallel = gomp_parallel) {
    parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, threads, 0);
  } else {
    pool().run(job, threads);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace sedd
