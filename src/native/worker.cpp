#include "worker.h"

#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <cstdint>
#include <future>
#include <new>
#include <shared_mutex>
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

std::mutex entrance;         // to `working`, so that new tasks do not keep a fork waiting
std::shared_mutex working;  // shared by the tasks in progress

std::shared_lock<std::shared_mutex> enter() {
  const std::lock_guard<std::mutex> lock(entrance);
  return std::shared_lock<std::shared_mutex>(working);
}

}  // namespace

void pause_workers() {
  entrance.lock();
  working.lock();
}

void resume_workers(bool in_child) {
  if (in_child) {  // glibc unlocks a shared mutex for none but the thread that locked it
    new (&working) std::shared_mutex;
    new (&entrance) std::mutex;
    return;
  }
  working.unlock();
  entrance.unlock();
}

Worker::Worker(int niceness)
    : thread_([this, niceness] {
        give_way(niceness);
        serve();
      }) {}

bool Worker::post(Task task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finishing_) {
      return false;
    }
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
  return true;
}

bool Worker::run(const Task& task) {
  std::packaged_task<void()> packaged(task);
  std::future<void> outcome = packaged.get_future();
  if (!post([&packaged] { packaged(); })) {
    return false;
  }
  outcome.get();
  return true;
}

void Worker::finish() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finishing_ = true;
  }
  changed_.notify_one();
  std::call_once(joined_, [this] { thread_.join(); });
}

void Worker::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !tasks_.empty() || finishing_; });
    if (tasks_.empty()) {
      return;
    }
    const Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    {
      const auto in_progress = enter();
      task();
    }
    lock.lock();
  }
}

}  // namespace aioembed
