#include "completion.h"

#include <unistd.h>

#ifdef __linux__
#include <sys/eventfd.h>
#else
#include <fcntl.h>
#endif

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "errors.h"

namespace aioembed {

Completion::Completion() {
#ifdef __linux__
  read_end_ = write_end_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  const bool made = read_end_ >= 0;
#else
  int ends[2];
  const bool made = pipe(ends) == 0;
  if (made) {
    for (const int end : ends) {
      fcntl(end, F_SETFD, FD_CLOEXEC);
      fcntl(end, F_SETFL, O_NONBLOCK);
    }
    read_end_ = ends[0];
    write_end_ = ends[1];
  }
#endif
  if (!made) {
    throw RuntimeFailure(
        executorch::runtime::Error::OutOfResources,
        std::string("making a descriptor for completed runs (") + std::strerror(errno) + ")", {});
  }
}

Completion::~Completion() {
  close(read_end_);
  if (write_end_ != read_end_) {
    close(write_end_);
  }
}

void Completion::set() {
  const std::uint64_t one = 1;  // as eventfd(2) wants it; a pipe takes any bytes
  while (write(write_end_, &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

void Completion::clear() {
  std::uint64_t count;
  ssize_t got = 0;
  do {
    got = read(read_end_, &count, sizeof(count));
  } while (got > 0 || (got < 0 && errno == EINTR));
}

}  // namespace aioembed
