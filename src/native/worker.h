// A thread that computes on behalf of another.
#pragma once

#include <functional>
#include <memory>
#include <thread>

namespace aioembed {

// A Python thread of low priority may lose the CPU while it holds the GIL, and then everyone waits
// for it. So what gives way to others is a thread that never takes the GIL.
class Worker {
 public:
  // On Linux its niceness, and that of the threads it starts, is so much above its maker's. Above 0
  // they also give way at once to a thread of the process that wakes up.
  explicit Worker(int niceness);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Returns when `work` has ended, or throws what it threw. For one caller at a time.
  void run(const std::function<void()>& work);

 private:
  struct Desk;

  std::unique_ptr<Desk> desk_;
  std::unique_ptr<std::thread> thread_;
  int process_;
};

}  // namespace aioembed
