// What ExecuTorch asks of its platform: a log, kept in memory, and an end to failed checks.
// Its callbacks run without the GIL, so no Python in them.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace aioembed {

struct LogLine {
  char level;  // 'D', 'I', 'E' or 'F'
  std::string message;
};

// Thrown through ExecuTorch where it would have called abort(). What it was working on is in an
// undefined state afterwards.
class FailedCheck : public std::exception {
 public:
  const char* what() const noexcept override { return "a check inside the runtime failed"; }
};

// Must run before anything else of ExecuTorch does.
void install_platform();

// Takes every line logged since the last call, of all threads.
std::vector<LogLine> drain_log();

// Collects the error lines that the calling thread logs while it lives.
class ErrorLines {
 public:
  ErrorLines();
  ~ErrorLines();
  ErrorLines(const ErrorLines&) = delete;
  ErrorLines& operator=(const ErrorLines&) = delete;

  const std::vector<std::string>& lines() const { return lines_; }
  void add(std::string line);

 private:
  std::vector<std::string> lines_;
  ErrorLines* outer_;
};

}  // namespace aioembed
