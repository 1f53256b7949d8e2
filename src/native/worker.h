// A thread that computes on behalf of others.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace aioembed {

// A Python thread of low priority may lose the CPU while it holds the GIL, and then everyone waits
// for it. So what gives way to others is a thread that never takes the GIL.
class Worker {
 public:
  using Task = std::function<void()>;

  // On Linux its niceness, and that of the threads it starts, is so much above its maker's. Above 0
  // they also give way at once to a thread of the process that wakes up.
  explicit Worker(int niceness);
  ~Worker() { finish(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Queues a task, which must not throw. Returns whether it will run: not after finish().
  bool post(Task task);

  // Queues a task, waits for it and throws what it threw. Returns whether it ran.
  bool run(const Task& task);

  // Returns when what was queued has run and the thread has ended; idempotent.
  void finish();

 private:
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool finishing_ = false;
  std::once_flag joined_;
  std::thread thread_;
};

// Around a fork, called by the thread that forks: waits for the tasks in progress, of every worker,
// and lets no other begin. Otherwise a lock of the runtime's that one of them holds would stay
// locked in the child.
void pause_workers();
void resume_workers(bool in_child);

}  // namespace aioembed
