#include "platform.h"

#include <executorch/runtime/platform/platform.h>

#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

namespace aioembed {
namespace {

constexpr std::size_t kKeptLines = 256;
constexpr std::size_t kKeptErrorLines = 16;

thread_local ErrorLines* current_errors = nullptr;

class Ring {
 public:
  void add(LogLine line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (lines_.size() == kKeptLines) {
      lines_.pop_front();
    }
    lines_.push_back(std::move(line));
  }

  std::vector<LogLine> drain() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<LogLine> lines(
        std::make_move_iterator(lines_.begin()), std::make_move_iterator(lines_.end()));
    lines_.clear();
    return lines;
  }

 private:
  std::mutex mutex_;
  std::deque<LogLine> lines_;
};

// Never destroyed: threads of the pool may log while the process ends.
Ring& ring() {
  static Ring* const instance = new Ring;
  return *instance;
}

// Messages quote the program's bytes, which may be anything.
std::string printable(std::string text) {
  for (char& c : text) {
    if (c < ' ' || c > '~') {
      c = '?';
    }
  }
  return text;
}

void emit(
    et_timestamp_t,
    et_pal_log_level_t level,
    const char* filename,
    const char*,
    std::size_t line,
    const char* message,
    std::size_t length) {
  const char* const slash = std::strrchr(filename, '/');
  std::string text = printable(std::string(slash ? slash + 1 : filename) + ":" + std::to_string(line) +
      ": " + std::string(message, length));
  const bool is_error = level == kError || level == kFatal;
  if (is_error && current_errors != nullptr) {
    current_errors->add(text);
  }
  ring().add({static_cast<char>(level), std::move(text)});
}

// A failed check inside the runtime means a damaged program, and is not a reason to end the process.
[[noreturn]] void abort_by_exception() { throw FailedCheck(); }

}  // namespace

void install_platform() {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(
      nullptr, abort_by_exception, nullptr, nullptr, emit, nullptr, nullptr, __FILE__));
}

std::vector<LogLine> drain_log() { return ring().drain(); }

ErrorLines::ErrorLines() : outer_(std::exchange(current_errors, this)) {}

ErrorLines::~ErrorLines() { current_errors = outer_; }

void ErrorLines::add(std::string line) {
  if (outer_ != nullptr) {
    outer_->add(line);
  }
  if (lines_.size() == kKeptErrorLines) {
    lines_.erase(lines_.begin());
  }
  lines_.push_back(std::move(line));
}

}  // namespace aioembed
