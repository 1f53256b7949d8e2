// A file descriptor that an event loop can wait for.
#pragma once

namespace aioembed {

// An eventfd on Linux, a pipe elsewhere.
class Completion {
 public:
  Completion();  // throws RuntimeFailure where no descriptor can be had
  ~Completion();
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  int fd() const { return read_end_; }  // readable while set
  void set();
  void clear();

 private:
  int read_end_;
  int write_end_;
};

}  // namespace aioembed
