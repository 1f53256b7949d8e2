// What the runtime refused, on its way to a Python exception.
#pragma once

#include <executorch/runtime/core/error.h>

#include <exception>
#include <string>
#include <vector>

namespace aioembed {

class RuntimeFailure : public std::exception {
 public:
  RuntimeFailure(
      executorch::runtime::Error error, std::string what, std::vector<std::string> log,
      bool is_lost = false)
      : error_(error), what_(std::move(what)), log_(std::move(log)), is_lost_(is_lost) {}

  const char* what() const noexcept override { return what_.c_str(); }
  unsigned code() const noexcept { return static_cast<unsigned>(error_); }
  std::string name() const {
    const std::string full = executorch::runtime::to_string(error_);
    return full.substr(full.rfind(':') + 1);
  }
  const std::vector<std::string>& log() const noexcept { return log_; }
  // Whether the program can never run again.
  bool is_lost() const noexcept { return is_lost_; }

 private:
  executorch::runtime::Error error_;
  std::string what_;
  std::vector<std::string> log_;
  bool is_lost_;
};

// The program was closed before the call got to it.
class ProgramClosed : public std::exception {
 public:
  const char* what() const noexcept override { return "the program is closed"; }
};

// There is no started run to collect.
class NothingStarted : public std::exception {
 public:
  const char* what() const noexcept override { return "nothing was started"; }
};

}  // namespace aioembed
