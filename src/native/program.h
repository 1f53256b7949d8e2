// One loaded ExecuTorch program. Nothing here touches Python.
#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/runtime/backend/options.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "completion.h"
#include "errors.h"
#include "platform.h"
#include "worker.h"

namespace aioembed {

using executorch::runtime::etensor::ScalarType;

struct TensorInfo {
  std::vector<std::int32_t> shape;  // as the axes lie in memory; upper bounds where dynamic
  ScalarType dtype;
  bool dynamic;
  std::vector<std::uint8_t> order;  // of the axes in memory, by the program's numbers
};

struct MethodInfo {
  std::string name;
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;
};

// Borrows the caller's memory, which is C-contiguous.
struct InputArray {
  const void* data;
  std::vector<std::int32_t> shape;
  ScalarType dtype;
};

struct OutputArray {
  std::unique_ptr<std::uint8_t[]> data;
  std::vector<std::size_t> shape;
  ScalarType dtype;
};

using ConstantValue = std::variant<bool, std::int64_t, double, std::string, OutputArray>;

// What a method without inputs and instructions holds: one value, or a list's.
struct Constant {
  std::string name;
  std::vector<ConstantValue> values;
};

// A call of a method from its start to the collection of its result.
struct Run {
  std::string method;
  std::vector<InputArray> inputs;
  std::shared_ptr<void> owner;  // of the inputs' memory; never released by the program's own thread
  std::vector<OutputArray> outputs;
  std::exception_ptr error;  // in place of outputs
  bool ended = false;
};

struct LoadOptions {
  bool single_thread = false;
  std::string packed_weights;  // file that keeps them, if any; at most 255 bytes
  int niceness = 0;            // of the threads that load and run, above the caller's
};

// Loads, runs and frees the program on its own thread. Of `start` and `collect`, one caller at
// a time; the rest may be called from any thread.
class Program {
 public:
  // Maps the file, verifies it and loads every method; throws RuntimeFailure.
  Program(std::string path, LoadOptions options);
  ~Program();

  const std::vector<MethodInfo>& methods() const { return methods_; }
  std::vector<Constant> take_constants() { return std::exchange(constants_, {}); }

  // Waits its turn and for the result. Throws ProgramClosed or RuntimeFailure.
  std::vector<OutputArray> run(const std::string& method, const std::vector<InputArray>& inputs);

  // Queues a run, whose result takes the place of an earlier one. Throws ProgramClosed.
  void start(std::unique_ptr<Run> run);

  // Readable when the run that was started last has ended.
  int completion_fd() const { return completion_.fd(); }

  // Takes the run that was started last, when it has ended. Throws NothingStarted.
  std::unique_ptr<Run> collect();

  // Frees the program after the run in progress; what is queued ends with ProgramClosed. Idempotent.
  void close();

 private:
  struct Staged;
  struct Planned;

  template <typename Work>
  auto translated(const std::string& doing, const ErrorLines& log, Work work);
  void load();
  void load_one(const std::string& name);
  executorch::runtime::HierarchicalAllocator* plan_memory(
      const executorch::runtime::MethodMeta& meta);
  std::vector<OutputArray> compute(
      const std::string& method, const std::vector<InputArray>& inputs);
  std::vector<std::uint8_t> order_of(
      const std::string& method, std::size_t input, std::size_t axes) const;
  void perform(Run& run);
  std::vector<std::unique_ptr<Run>> take_forgotten();
  void free_memory();
  std::vector<TensorInfo> describe_inputs(
      const executorch::runtime::MethodMeta& meta, const executorch::runtime::Method& method);
  std::vector<TensorInfo> describe_outputs(
      const executorch::runtime::MethodMeta& meta, const executorch::runtime::Method& method);

  // The worker's thread alone uses these, once it has them.
  std::string path_;
  LoadOptions load_options_;
  executorch::runtime::BackendOptions<3> backend_options_;  // must outlive the module
  executorch::runtime::LoadBackendOptionsMap backend_options_map_;
  std::vector<std::unique_ptr<Planned>> planned_;  // must outlive the module
  std::unique_ptr<executorch::extension::Module> module_;
  bool is_loaded_ = false;
  std::optional<RuntimeFailure> lost_;  // why there is no module although nobody closed the program

  std::vector<MethodInfo> methods_;
  std::vector<Constant> constants_;

  std::mutex mutex_;  // of what follows
  std::condition_variable run_ended_;
  std::vector<std::unique_ptr<Run>> runs_;  // started, and not collected or forgotten yet
  Run* awaited_ = nullptr;                  // the one of them whose result is wanted
  Completion completion_;

  std::atomic<bool> closing_{false};
  Worker worker_;
};

}  // namespace aioembed
