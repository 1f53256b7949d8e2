#include "threads.h"

#include <cstdint>

#include "worker.h"

// libexecutorch_threadpool exports this class; the SDK does not ship its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  std::size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(std::uint32_t num_threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace aioembed {

using executorch::extension::threadpool::get_threadpool;

std::size_t pool_thread_count() {
  const auto* const pool = get_threadpool();
  return pool == nullptr ? 1 : pool->get_thread_count();
}

namespace {

bool resize(std::size_t threads) {
  if (pool_thread_count() == threads) {
    return true;
  }
  auto* const pool = get_threadpool();
  return pool != nullptr &&
      pool->_unsafe_reset_threadpool(static_cast<std::uint32_t>(threads)) &&
      pool->get_thread_count() == threads;
}

}  // namespace

bool resize_pool(std::size_t threads, int niceness) {
  bool has_them = false;
  static_cast<void>(Worker(niceness).run([&] { has_them = resize(threads); }));
  return has_them;
}

}  // namespace aioembed
