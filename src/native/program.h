// One loaded ExecuTorch program. Nothing here touches Python.
#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/runtime/backend/options.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "platform.h"
#include "worker.h"

namespace aioembed {

using executorch::runtime::etensor::ScalarType;

struct TensorInfo {
  std::vector<std::int32_t> shape;  // upper bounds where dynamic
  ScalarType dtype;
  bool dynamic;
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

struct LoadOptions {
  bool single_thread = false;
  bool share_weights = false;
  int niceness = 0;  // of the threads that load and run, above the caller's; 0 is the caller itself
};

class Program {
 public:
  // Maps the file, verifies it and loads every method; throws RuntimeFailure.
  Program(std::string path, LoadOptions options);
  ~Program();

  const std::vector<MethodInfo>& methods() const { return methods_; }
  std::vector<Constant> take_constants() { return std::exchange(constants_, {}); }

  // Waits for the run in flight. Throws ProgramClosed or RuntimeFailure.
  std::vector<OutputArray> run(const std::string& method, const std::vector<InputArray>& inputs);

  // Waits for the run in flight; idempotent.
  void close();

 private:
  struct Staged;
  struct Planned;

  template <typename Work>
  auto translated(const std::string& doing, const ErrorLines& log, Work work);
  void work(const std::function<void()>& task);
  void load();
  void load_one(const std::string& name);
  executorch::runtime::HierarchicalAllocator* plan_memory(
      const executorch::runtime::MethodMeta& meta);
  std::vector<OutputArray> compute(
      const std::string& method, const std::vector<InputArray>& inputs);
  std::vector<TensorInfo> describe_inputs(
      const executorch::runtime::MethodMeta& meta, const executorch::runtime::Method& method);
  std::vector<TensorInfo> describe_outputs(
      const executorch::runtime::MethodMeta& meta, const executorch::runtime::Method& method);

  std::string path_;
  LoadOptions load_options_;
  std::mutex mutex_;
  std::optional<Worker> worker_;
  executorch::runtime::BackendOptions<2> backend_options_;  // must outlive the module
  executorch::runtime::LoadBackendOptionsMap backend_options_map_;
  std::vector<std::unique_ptr<Planned>> planned_;  // must outlive the module
  std::unique_ptr<executorch::extension::Module> module_;
  std::vector<MethodInfo> methods_;
  std::vector<Constant> constants_;
};

}  // namespace aioembed
