#include "worker.h"

#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>

namespace aioembed {
namespace {

#ifdef __linux__
constexpr int kLowestPriority = 19;
constexpr std::uint64_t kLongSlice = 100'000'000;  // nanoseconds, the most that Linux takes

struct SchedulingAttributes {  // sched_attr of sched_setattr(2), which older libraries lack
  std::uint32_t size;
  std::uint32_t policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime;
  std::uint64_t deadline;
  std::uint64_t period;
};

// From Linux 6.12 on: a thread that wakes up takes the CPU at once from one whose slice is longer.
// Older ones keep the slice to themselves. Where it is refused, niceness has to do.
void lengthen_slice() {
  SchedulingAttributes attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) == 0 &&
      (attributes.policy == SCHED_OTHER || attributes.policy == SCHED_BATCH)) {
    attributes.runtime = kLongSlice;
    static_cast<void>(syscall(SYS_sched_setattr, 0, &attributes, 0));
  }
}

void give_way(int niceness) {
  const int own = getpriority(PRIO_PROCESS, 0);
  setpriority(PRIO_PROCESS, 0, std::min(own + niceness, kLowestPriority));
  if (niceness > 0) {
    lengthen_slice();
  }
}
#else
void give_way(int /*niceness*/) {}  // it would be the whole process that does
#endif

}  // namespace

// Where work is laid down by one thread and done by the other.
struct Worker::Desk {
  std::mutex mutex;
  std::condition_variable changed;
  const std::function<void()>* work = nullptr;
  std::exception_ptr error;
  bool closing = false;

  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return work != nullptr || closing; });
      if (work == nullptr) {
        return;
      }
      lock.unlock();
      std::exception_ptr raised;
      try {
        (*work)();
      } catch (...) {
        raised = std::current_exception();
      }
      lock.lock();
      error = std::move(raised);
      work = nullptr;
      changed.notify_all();
    }
  }
};

Worker::Worker(int niceness) : desk_(std::make_unique<Desk>()), process_(getpid()) {
  thread_ = std::make_unique<std::thread>([desk = desk_.get(), niceness] {
    give_way(niceness);
    desk->serve();
  });
}

Worker::~Worker() {
  if (getpid() != process_) {  // forked: the thread stayed behind, and nothing here can be ended
    static_cast<void>(thread_.release());
    static_cast<void>(desk_.release());
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(desk_->mutex);
    desk_->closing = true;
  }
  desk_->changed.notify_all();
  thread_->join();
}

void Worker::run(const std::function<void()>& work) {
  std::unique_lock<std::mutex> lock(desk_->mutex);
  desk_->work = &work;
  desk_->changed.notify_all();
  desk_->changed.wait(lock, [this] { return desk_->work == nullptr; });
  if (const std::exception_ptr raised = std::exchange(desk_->error, nullptr)) {
    std::rethrow_exception(raised);
  }
}

}  // namespace aioembed
